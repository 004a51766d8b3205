"""Chooses an `ExecutionPlan` by device, network and amount of work, and applies its process-wide parts."""

import ctypes
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

from limbeck.errors import OptionError
from limbeck.train.network import Network, can_compile, compiler
from limbeck.types.plan import ExecutionPlan

_CHUNK_OPERATIONS = 3.1e9  # of a forward pass: 32 images of a ConvNet-D3-W128 at 28x28, whose activations then stay in the cache
_COMPILE_PAYS_ABOVE = 20e12  # operations of a whole job; a CPU compiles for 10 to 40 s, in which an eager run does about 3e12
_ONE_THREAD_BELOW = 3e8  # operations of a batch's forward pass
_STACK_BELOW = (
    1e7  # operations of a batch's forward pass: below it the calls cost more than the arithmetic, and a stack of models shares them (measured 1.5-3x)
)
_MOST_MODELS = 16
_MOST_GPU_MODELS = 32
_GPU_COMPILE_PAYS_ABOVE = 1e15  # operations of a whole job: a minute of compiling against some minutes of eager training; not measured yet


def plan_for(network: Network, images: int, *, batch: int = 256, device: str = "auto", threads: int | None = None) -> ExecutionPlan:
    """The plan for a job that passes `images` images (epochs and students included) in batches of `batch` through the training of `network`.

    On a CPU, long jobs are compiled, in bfloat16 where the processor multiplies it natively; short ones stay eager in float32, since compiling would cost more
    than it saves. Batches pass in chunks whose activations fit the cache unless the network has batch statistics.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise OptionError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise OptionError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError("device 'cuda' was asked for, but this machine has no usable GPU; use --device cpu")
    if kind != "cpu":
        return _gpu_plan(network, images, batch, device, threads or 1)
    # below this a second thread waits longer than it works, and far longer when another program wants the core
    small = network.flops() * batch < _ONE_THREAD_BELOW
    cores = threads or (1 if small else torch.get_num_threads())
    chunk = 0 if network.has_batch_statistics else max(16, min(1024, int(_CHUNK_OPERATIONS / max(network.flops(), 1))))
    work = 3 * network.flops() * images
    if network.flops() * batch < _STACK_BELOW and network.can_stack:
        return ExecutionPlan(device=device, models=_MOST_MODELS, chunk=chunk, threads=cores, reason=f"small network: {_MOST_MODELS} at once")
    if work < _COMPILE_PAYS_ABOVE:
        return ExecutionPlan(device=device, chunk=chunk, threads=cores, reason=f"{work:.1e} operations: too short to compile")
    if compiler() is None:
        return ExecutionPlan(device=device, chunk=chunk, threads=cores, reason="no C++ compiler found: eager, with the same results but slower")
    narrow = torch.ops.mkldnn._is_mkldnn_bf16_supported() and _native_bfloat16()
    precision = "bfloat16" if narrow else "float32"
    side_by_side = 1 if chunk == 0 else cores
    return ExecutionPlan(
        device=device,
        strategy="compiled",
        precision=precision,
        lanes=side_by_side,
        chunk=chunk and max(1, min(chunk, -(-batch // side_by_side))),
        threads=cores // side_by_side,
        reason=f"{work:.1e} operations: compiled, {precision}",
    )


def _gpu_plan(network: Network, images: int, batch: int, device: str, cores: int) -> ExecutionPlan:
    """Compiled, recorded and stacked where the work pays for compiling; as many models as memory holds; batches cut when even one does not fit."""
    compiled = 3 * network.flops() * images > _GPU_COMPILE_PAYS_ABOVE and can_compile("cuda")
    narrow = compiled and torch.cuda.is_bf16_supported(including_emulation=False)
    # activations are kept for the backward pass, and their gradients and copies come on top
    each = 3 * network.activation_values() * (2 if narrow else 4)
    # of all the memory, not of what is free just now: the plan is part of every key, and must be the same tomorrow. Half is left to what is recorded and cached
    room = 0.5 * torch.cuda.get_device_properties(device).total_memory
    own = 24 * network.parameter_count  # parameters, gradients, optimizer and their updates
    fits = max(1, int((room - own) / each))
    models = max(1, min(_MOST_GPU_MODELS, int(room / (batch * each + own)))) if network.can_stack else 1
    chunk = 0 if fits >= batch or network.has_batch_statistics else fits
    words = f"{models} models at once" + (f" in chunks of {chunk}" if chunk else "") + ("" if compiled else ", too short to compile")
    return ExecutionPlan(
        device=device,
        strategy="compiled" if compiled else "eager",
        precision="bfloat16" if narrow else "float32",
        models=models,
        chunk=chunk,
        threads=cores,
        reason=f"{device}: {words}",
    )


def prediction_size(network: Network, device: str) -> int:
    """Images that pass at once when nothing is kept for a backward pass: as the cache of a CPU holds, or 4 GB of a GPU."""
    if torch.device(device).type == "cpu":
        return max(16, min(256, int(_CHUNK_OPERATIONS / max(network.flops(), 1))))
    return max(1, min(2048, int(1e9 / max(network.activation_values(), 1))))


@cache
def lanes(count: int) -> ThreadPoolExecutor:
    """Threads that each take whole pieces of work, with one arithmetic thread each: they meet once a step instead of once an operation, so a busy or
    interrupted core costs little (measured on two cores: 10 % faster than two threads in every operation when idle, 2.5 times when the machine is shared)."""
    return ThreadPoolExecutor(max_workers=count, thread_name_prefix="lane", initializer=torch.set_num_threads, initargs=(1,))


def on_device(device: str) -> AbstractContextManager[object]:
    """Makes a GPU the current one: streams and graphs belong to it, wherever tensors lie."""
    return torch.cuda.device(torch.device(device)) if torch.device(device).type == "cuda" else nullcontext()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs with `count` CPU threads, and with an allocator that keeps freed memory; restores the thread count afterwards."""
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _keep_freed_memory() -> bool:
    """Tells glibc's allocator to reuse large blocks instead of returning them to the system after every operation.

    Activations are tens of megabytes; by default each is mapped and unmapped anew, and page faults then cost as much as the arithmetic (measured: half
    the time of an eager ConvNet step on two cores). Numbers are unaffected. Elsewhere than glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        libc = ctypes.CDLL(None)
        mmap_threshold, trim_threshold = -3, -1
        return bool(libc.mallopt(mmap_threshold, 1 << 30)) and bool(libc.mallopt(trim_threshold, (1 << 31) - 1))
    except (OSError, AttributeError):
        return False


@cache
def _native_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo") as info:
            flags = info.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
