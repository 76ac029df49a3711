"""Keep freed memory in the process. glibc returns every large block to the kernel and fetches it again for the next tensor.

Activations are such blocks, so on a CPU each operation pays for fresh pages: a tenth of the forward and more, above all on
virtual machines (docs/log.md has figures). With these two settings freed blocks stay in the heap and are used again. The
process keeps its peak size until it ends, which is why the command does this and the library leaves it to its user.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # The numbers stand in malloc.h.
LARGE = 1 << 30


def keep_freed_memory() -> bool:
    """Ask the C library not to return freed memory to the system. True where it agreed (Linux with glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, LARGE) == 1 for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
