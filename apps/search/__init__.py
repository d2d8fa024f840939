"""Semantic search in one's own files: `python -m apps.search index|query|eval` (__main__.py).

files.py finds and reads, chunks.py cuts, store.py keeps, update.py indexes; vectors.py and
lexical.py are the two ways to look something up, engine.py joins them, show.py prints and judged.py
measures.
"""

MODES = ('hybrid', 'semantic', 'lexical')
FUSIONS = ('scores', 'ranks')
# Of meaning beside words where none is asked for: small, since words alone find more than a small
# model does.
WEIGHT = 0.1
