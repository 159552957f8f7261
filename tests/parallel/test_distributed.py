"""How processes find each other; test_local.py in launch starts some."""

import contextlib
import importlib.util
import socket
import time

import jax
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.parallel import distributed

LAPTOP = {"TPU_SKIP_MDS_QUERY": "1"}  # JAX sets it if there are no chips

SLURM = dict.fromkeys(distributed.SLURM, "1") | {
  "SLURM_NTASKS": "4",
  "SLURM_STEP_NODELIST": "node[1-4]",
}

EXPLICIT = {
  "coordinator_address": "10.0.0.2:8476",
  "num_processes": 4,
  "process_id": 3,
  "cluster_detection_method": "deactivate",
}

BY_HAND = ("10.0.0.2:8476", 4, 3)
TASKS = "SLURM_STEP_TASKS_PER_NODE"
ADDRESS = {"LUMIERE_COORDINATOR": "10.0.0.2:8476", "LUMIERE_NUM_PROCESSES": "4"}
NAMES = ("coordinator", "num_processes", "process_id")


def arguments(environ, given=(None, None, None)):
  """The arguments; environment variables of value None are left out."""
  environ = {k: v for k, v in environ.items() if v is not None}
  given = dict(zip(NAMES, given, strict=True))
  return distributed.initialize_args(given, environ)


@pytest.mark.parametrize(
  ("environ", "given"),
  [
    ({}, BY_HAND),
    (SLURM, BY_HAND),
    (ADDRESS | {"LUMIERE_PROCESS_ID": "2"}, (None, None, 3)),
    (ADDRESS | {"JOB_COMPLETION_INDEX": "3"}, (None, None, None)),
  ],
)
def test_options_are_used_as_given_and_replace_the_environment(environ, given):
  assert arguments(LAPTOP | environ, given) == EXPLICIT


@pytest.mark.parametrize("libtpu", [None, object()])
@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    ({}, None),
    # Kubernetes also sets it in jobs of one pod.
    ({"JOB_COMPLETION_INDEX": "3"}, None),
    (SLURM, {}),
    # The only task of a node gets all its GPUs, not the one JAX would give it.
    (SLURM | {TASKS: "1(x4)"}, {"local_device_ids": []}),
    (SLURM | {TASKS: "4"}, {}),
    (SLURM | {TASKS: "1,3"}, {}),
    (SLURM | {"SLURM_NTASKS": "1"}, None),
    # The shell that salloc opens.
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    # In an sbatch script, outside srun.
    (SLURM | {"SLURM_STEP_NODELIST": None}, None),
    # GKE.
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
    ({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471"}, {}),
    ({"TPU_PROCESS_ADDRESSES_PATH": "/etc/addresses"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "a"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"}, {}),
  ],
  ids=str,
)
def test_what_is_detected(environ, expected, libtpu, monkeypatch):
  """JAX marks machines without chips, which may have libtpu too."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu)
  assert arguments(LAPTOP | environ) == expected


@pytest.mark.parametrize(("libtpu", "expected"), [(None, None), (object(), {})])
def test_a_cloud_tpu_is_detected_by_libtpu(libtpu, expected, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu)
  assert arguments({}) == expected


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ((None, 2, 0), "coordinator .*LUMIERE_COORDINATOR.* missing"),
    (("a:1", None, 0), "num_processes .*missing"),
    (("a:1", 2, None), "process_id .*missing"),
    (("a:1", 2, 2), "process_id=2 .*num_processes=2; use 0 to 1"),
    (("a:1", 2, -1), "process_id=-1 .*at least 0"),
    (("a:1", 0, 0), "num_processes=0 .*at least 1"),
    (("a:1", "two", 0), "num_processes=two .*whole number"),
    (("a", 2, 0), "coordinator=a .*HOST:PORT"),
    ((":8476", 2, 0), "coordinator=:8476 .*HOST:PORT"),
    (("a:http", 2, 0), "coordinator=a:http .*HOST:PORT"),
    (("a:70000", 2, 0), "coordinator=a:70000 .*HOST:PORT"),
  ],
  ids=str,
)
def test_errors_name_the_option(given, words):
  with pytest.raises(UserError, match=words):
    arguments(LAPTOP, given)


@contextlib.contextmanager
def taken_port():
  with contextlib.closing(socket.socket()) as listener:
    listener.bind(("", 0))
    listener.listen()
    yield listener.getsockname()[1]


def test_a_coordinator_that_does_not_answer_times_out():
  with taken_port() as port:
    pass  # nobody listens there now
  start = time.monotonic()
  with pytest.raises(UserError, match=rf"coordinator=.*:{port} did not answer"):
    distributed.start(f"127.0.0.1:{port}", 2, 1, wait_s=0.2)
  assert time.monotonic() - start < 5
  assert not jax.distributed.is_initialized()


def test_an_unknown_host_times_out():
  with pytest.raises(UserError, match=r"coordinator=no\.such"):
    distributed.start("no.such.host.invalid:1", 2, 1, wait_s=0.1)


def test_a_port_that_is_taken_is_reported():
  with (
    taken_port() as port,
    pytest.raises(UserError, match=rf"port {port} cannot be opened.*another"),
  ):
    distributed.start(f"127.0.0.1:{port}", 2, 0)


def test_if_jax_finds_no_process_the_options_are_named(monkeypatch):
  # JAX finds no cluster here, though a TPU was expected.
  for name in (*distributed.SLURM, "KUBERNETES_SERVICE_HOST"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(distributed, "initialize_args", lambda given, environ: {})
  monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", bool)
  with pytest.raises(UserError, match=r"coordinator, num_processes and"):
    distributed.start()


def test_a_single_process_starts_and_stops_nothing(monkeypatch):
  monkeypatch.setattr(
    distributed, "initialize_args", lambda given, environ: None
  )
  assert not distributed.start()
  with distributed.joined():
    assert not jax.distributed.is_initialized()
  distributed.stop()
