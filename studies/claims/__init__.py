"""What is said of transformers, measured on models trained here (`python -m studies.claims`).

Each claim is a module with VERSION, raised where the same config would give other records; `cells`,
which lists what is measured; `check`, which refuses a config before anything is trained; `measure`,
which measures cells; and `find`, which makes a finding of their records (frame.py, study.py).
"""
