#!/usr/bin/env python3
"""Assembles .toolchain/home, the CUDA_HOME that cargo sees, out of the compiler's wheels.

The libraries in it are archives of trampolines, written here: each symbol looks its function up at its first call, with
dlopen and dlsym. So a plugin needs no CUDA library to be loaded, and without one each function returns the error its
library has for that. LIMBECK_CUDA_LIB_DIR names a folder that is searched before the system's.
"""

import hashlib
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLKIT = ROOT / ".toolchain/cu/nvidia/cu13"
HOME = ROOT / ".toolchain/home"

# link name: (cudarc's module, file the loader looks for, what a function returns without it)
LIBRARIES = {
    "cuda": ("driver", "libcuda.so.1", 100),  # CUDA_ERROR_NO_DEVICE
    "cublas": ("cublas", "libcublas.so.13", 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    "cublasLt": ("cublaslt", "libcublasLt.so.13", 1),
    "curand": ("curand", "libcurand.so.10", 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    "nvrtc": ("nvrtc", "libnvrtc.so.13", 11),  # NVRTC_ERROR_INTERNAL_ERROR
}

# All registers that can hold an argument of a C function; their number keeps the stack aligned to 16 bytes.
SAVED = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax", "r10", "rbx"]


def cudarc():
    """The source folder of the cudarc that the lock file names."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--features", "limbeck-students/cuda"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    manifest = next(p["manifest_path"] for p in json.loads(out)["packages"] if p["name"] == "cudarc")
    return Path(manifest).parent / "src"


def symbols(source, module):
    text = (source / module / "sys/mod.rs").read_text(encoding="utf-8")
    found = sorted(set(re.findall(r'extern "C" \{\s*fn (\w+)\(', text)))
    if not found:
        sys.exit(f"{source}/{module}: no functions found; this cudarc is written in another way")
    return found


def assembly(library, names):
    """The trampolines: through the slot if it is filled, else through `slow`, which fills it."""
    resolve = f"limbeck_{library}_resolve"
    lines = [".text"]
    for index, name in enumerate(names):
        lines += [f".globl {name}", f".hidden {name}", f".type {name},@function", f"{name}:",
                  f"movq slots+{8 * index}(%rip), %r11", "testq %r11, %r11", "je 1f", "jmp *%r11",
                  f"1: movl ${index}, %r11d", "jmp slow"]
    lines += ["slow:"] + [f"pushq %{r}" for r in SAVED] + ["subq $128, %rsp"]
    lines += [f"movaps %xmm{i}, {16 * i}(%rsp)" for i in range(8)]
    lines += ["movl %r11d, %edi", f"call {resolve}", "movq %rax, %r11"]
    lines += [f"movaps {16 * i}(%rsp), %xmm{i}" for i in range(8)]
    lines += ["addq $128, %rsp"] + [f"popq %{r}" for r in reversed(SAVED)] + ["jmp *%r11"]
    lines += [".local slots", f".comm slots,{8 * len(names)},16", '.section .rodata', f"limbeck_{library}_names:",
              f".globl limbeck_{library}_names", f".hidden limbeck_{library}_names"]
    lines += [f'.asciz "{name}"' for name in names]
    # The C half writes the slot through this address.
    lines += [".text", f".globl limbeck_{library}_slot", f".hidden limbeck_{library}_slot", f"limbeck_{library}_slot:",
              "leaq slots(%rip), %rax", "movl %edi, %edi", "leaq (%rax,%rdi,8), %rax", "ret"]
    lines += ['.section .note.GNU-stack,"",@progbits']
    return "\n".join(lines) + "\n"


RESOLVE = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define HIDDEN __attribute__((visibility("hidden")))

extern HIDDEN const char limbeck_@LIBRARY@_names[];
extern HIDDEN void **limbeck_@LIBRARY@_slot(unsigned index);

static int absent(void) { return @ABSENT@; }

static void *open_library(const char *name) {
    const char *folder = getenv("LIMBECK_CUDA_LIB_DIR");
    char path[4096];
    void *opened = NULL;
    if (folder && snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path)
        opened = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return opened ? opened : dlopen(name, RTLD_NOW | RTLD_LOCAL);
}

/* Two threads may both come here: dlopen counts, and both find the same function. */
HIDDEN void *limbeck_@LIBRARY@_resolve(unsigned index) {
    const char *name = limbeck_@LIBRARY@_names;
    for (unsigned i = 0; i < index; i++) name += strlen(name) + 1;
    @BEFORE@
    void *library = open_library("@SONAME@");
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) found = (void *)absent;
    __atomic_store_n(limbeck_@LIBRARY@_slot(index), found, __ATOMIC_RELEASE);
    return found;
}
"""


def archive(library, names, folder):
    """Compiles `lib{library}.a` into `folder`."""
    _, soname, absent = LIBRARIES[library]
    # NVRTC looks for its builtins in the system's folders alone, unless they are loaded already.
    before = 'open_library("libnvrtc-builtins.so.13.0");' if library == "nvrtc" else ""
    text = RESOLVE
    for key, value in {"LIBRARY": library, "SONAME": soname, "ABSENT": str(absent), "BEFORE": before}.items():
        text = text.replace(f"@{key}@", value)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "names.s").write_text(assembly(library, names))
        (work / "resolve.c").write_text(text)
        for source in ["names.s", "resolve.c"]:
            run(["cc", "-c", "-O1", "-fPIC", "-Wall", source, "-o", source + ".o"], work)
        target = folder / f"lib{library}.a"
        target.unlink(missing_ok=True)
        run(["ar", "rcsD", str(target), "names.s.o", "resolve.c.o"], work)


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")


def link(at, to):
    if not at.is_symlink() or at.readlink() != to:
        at.unlink(missing_ok=True)
        at.symlink_to(to)


def main():
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        sys.exit("the trampolines are written for Linux on x86-64; build without feature `cuda` here")
    folder = HOME / "lib64"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["bin", "include", "nvvm"]:
        link(HOME / name, TOOLKIT / name)
    link(HOME / "lib", Path("lib64"))
    link(folder / "libcudart.a", TOOLKIT / "lib/libcudart_static.a")
    link(folder / "libcudadevrt.a", TOOLKIT / "lib/libcudadevrt.a")
    source = cudarc()
    made = folder / "made-from"
    key = hashlib.sha256(Path(__file__).read_bytes() + str(source).encode()).hexdigest()
    if made.is_file() and made.read_text() == key:
        return
    for library, (module, _, _) in LIBRARIES.items():
        archive(library, symbols(source, module), folder)
    made.write_text(key)


if __name__ == "__main__":
    main()
