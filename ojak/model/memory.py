"""How much memory is free, and keeping what was freed: CPU and CUDA."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

# glibc's mallopt parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def available_bytes(device: torch.device) -> int:
    """Bytes that can be taken now: free video memory, or free RAM within this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_meminfo(), _cgroup())


def _meminfo() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup() -> int:
    """What the control group (version 2) still allows; no limit where there is none.

    Files that were read lie in memory, too, and count as used: the kernel drops those that are inactive on demand.
    """
    root = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = int((root / "memory.max").read_text("ascii"))  # ValueError for "max"
        used = int((root / "memory.current").read_text("ascii"))
        return max(0, limit - max(0, used - _inactive_file(root / "memory.stat")))
    return sys.maxsize


def _inactive_file(path: Path) -> int:
    """Bytes of cached file content that nothing has used lately; 0 where it cannot be told."""
    with suppress(OSError, ValueError):
        fields = dict(line.split() for line in path.read_text("ascii").splitlines())
        return int(fields.get("inactive_file", 0))
    return 0


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next tensor instead of handing it back to the kernel.

    By default each large temporary is mapped and faulted in anew, which costs a tenth to a half of the time on CPU.
    Does nothing where the C library is another one, or where the user set glibc's own variables.
    """
    if sys.platform != "linux" or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def forget_peak() -> None:
    """Hands freed memory back to the kernel, and lets `peak_rss_bytes` count anew from what is held now.

    For a process that does several jobs one after the other. Where the kernel does not allow it, the peak stays that of
    the whole process.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(
                "5", "ascii"
            )  # proc(5): resets the peak of the resident set


def peak_rss_bytes() -> int:
    """The most RAM this process has held (since `forget_peak`)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes(device: torch.device) -> int:
    """What this process holds now where its tensors are: video memory, or RAM."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def peak_bytes(device: torch.device) -> int:
    """The most of it since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()


def resident_bytes() -> int:
    """The RAM this process holds now; the most it has held where that cannot be asked."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_rss_bytes()
