"""The CUDA kernels as nvcc compiles them, on a machine that executes PTX; and that machine itself."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ops import ptx_cases
from tests.ops.ptx_cases import FAULTS, TARGETS, runs_of
from tests.simulator import machine as simulator
from tests.simulator.machine import KERNEL_SOURCES, LAUNCHER, SOURCES, Machine, PtxError

HEAD = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
"""
KERNEL = """
.visible .entry kernel(.param .u64 results, .param .u64 inputs)
.maxntid 256, 1, 1
{
.reg .pred %p<8>;
.reg .b16 %h<8>;
.reg .b32 %r<80>;
.reg .f32 %f<80>;
.reg .b64 %d<16>;
.reg .f64 %g<8>;
ld.param.u64 %d0, [results];
ld.param.u64 %d3, [inputs];
mov.u32 %r0, %tid.x;
mul.wide.u32 %d1, %r0, 8;
add.s64 %d1, %d0, %d1;
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine, and the kernels' launches on it."""
    if shutil.which(os.environ.get("CXX", "g++")) is None and not os.environ.get("CI"):
        pytest.skip("no C++ compiler")
    return simulator.build(tmp_path_factory.mktemp("machine") / "machine.so", (LAUNCHER, *SOURCES))


@pytest.fixture(scope="session")
def machine(library: Path) -> Machine:
    return Machine(library)


def run(
    machine: Machine,
    body: str,
    inputs: Tensor | None = None,
    *,
    threads: int = 32,
    blocks: int = 1,
    shared_bytes: int = 0,
    seed: int = 0,
) -> list[int]:
    """What threads have stored, 64 bits each at %d1, by code with its index in %r0 and inputs at %d3."""
    results = torch.zeros(threads, dtype=torch.int64)
    addresses = [ctypes.c_uint64(0 if tensor is None else tensor.data_ptr()) for tensor in (results, inputs)]
    module = machine.load(f"{HEAD}{KERNEL}{body}\nret;\n}}\n")
    module.launch("kernel", *addresses, threads=threads, blocks=blocks, shared_bytes=shared_bytes, seed=seed)
    return results.tolist()


def single(value: float) -> str:
    """A number as PTX writes it."""
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"


def double(value: float) -> str:
    return f"0d{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def bits(value: float) -> int:
    return int(single(value)[2:], 16)


NAN, INFINITY = math.nan, math.inf
INTEGERS = {
    "add.s32 %r1, 2147483647, 1;": 0x80000000,
    "sub.s32 %r1, 1, 2;": 0xFFFFFFFF,
    "mul.lo.s32 %r1, 65537, 65537;": 0x20001,
    "mad.lo.s32 %r1, -3, 4, 5;": 0xFFFFFFF9,
    "div.s32 %r1, -7, 2;": 0xFFFFFFFD,
    "rem.s32 %r1, -7, 2;": 0xFFFFFFFF,
    "div.u32 %r1, -7, 2;": 0x7FFFFFFC,
    "min.s32 %r1, -1, 1;": 0xFFFFFFFF,
    "max.s32 %r1, -1, 1;": 1,
    "shl.b32 %r1, 1, 31;": 0x80000000,
    "shl.b32 %r1, 1, 32;": 0,
    "shr.u32 %r1, -8, 40;": 0,
    "shr.s32 %r1, -8, 40;": 0xFFFFFFFF,
    "shr.s32 %r1, -8, 1;": 0xFFFFFFFC,
    "not.b32 %r1, 5;": 0xFFFFFFFA,
    "neg.s32 %r1, 5;": 0xFFFFFFFB,
    "xor.b32 %r1, 12, 10;": 6,
    "clz.b64 %r1, 0;": 64,
    "clz.b64 %r1, 1;": 63,
    "mov.b32 %r2, 0x12345678; mov.b32 {%h1, %h2}, %r2; mov.b32 %r1, {%h2, %h1};": 0x56781234,
    "mov.b64 %d2, 0x1234567887654321; mov.b64 {_, %r1}, %d2;": 0x12345678,
    "mov.u64 %d2, 0x1ffffffff; cvt.u32.u64 %r1, %d2;": 0xFFFFFFFF,
    "setp.lt.s32 %p1, -1, 0; selp.b32 %r1, 3, 4, %p1;": 3,
    "setp.lt.u32 %p1, -1, 0; selp.b32 %r1, 3, 4, %p1;": 4,
    "mov.pred %p1, 1; not.pred %p2, %p1; or.pred %p3, %p1, %p2; selp.b32 %r1, 3, 4, %p3;": 3,
    "mov.pred %p1, 1; and.pred %p2, %p1, 0; xor.pred %p3, %p1, %p2; selp.b32 %r1, 3, 4, %p3;": 3,
    "mov.pred %p1, 0; mov.u32 %r1, 5; @%p1 mov.u32 %r1, 6; @!%p1 add.s32 %r1, %r1, 2;": 7,
    "{ .reg .b32 %r1; mov.u32 %r1, 1; } mov.u32 %r1, 2;": 2,
}
WIDE = {
    "mul.wide.s32 %d2, -3, 5;": -15,
    "mul.wide.u32 %d2, -1, -1;": 0xFFFFFFFE00000001 - (1 << 64),
    "cvt.s64.s32 %d2, -5;": -5,
    "cvt.u64.u32 %d2, -5;": 0xFFFFFFFB,
    "mov.u64 %d4, 0x1fffffffb; cvt.s64.s32 %d2, %d4;": -5,
    "shl.b64 %d2, 1, 63;": -(1 << 63),
    "shl.b64 %d2, 1, 64;": 0,
    "shr.s64 %d2, -8, 70;": -1,
    "div.s64 %d2, -7, 2;": -3,
    "rem.s64 %d2, -7, 2;": -1,
    f"cvt.rzi.s64.f32 %d2, {single(NAN)};": -(1 << 63),
    f"cvt.rzi.s64.f32 %d2, {single(1e30)};": (1 << 63) - 1,
    f"cvt.rzi.s64.f64 %d2, {double(-2.9)};": -2,
    f"cvt.rmi.f64.f64 %g1, {double(-2.5)}; mov.b64 %d2, %g1;": struct.unpack("<q", struct.pack("<d", -3))[0],
}
TINY = 2.0**-24
"""The smallest half."""

FLOATS = {
    f"fma.rn.f32 %f1, {single(1 + 2**-12)}, {single(1 + 2**-12)}, {single(-1 - 2**-11)};": bits(TINY),
    f"fma.rm.f32 %f1, {single(1)}, {single(1)}, {single(TINY)};": bits(1),
    f"fma.rm.f32 %f1, {single(1)}, {single(-1)}, {single(-TINY / 2)};": bits(-1 - 2**-23),
    f"add.f32 %f1, {single(1)}, {single(TINY)};": bits(1),
    f"mul.rn.f32 %f1, {single(2**-100)}, {single(2**-40)};": bits(2**-140),
    f"div.rn.f32 %f1, {single(1)}, {single(3)};": 0x3EAAAAAB,
    f"rcp.rn.f32 %f1, {single(0)};": bits(INFINITY),
    f"neg.f32 %f1, {single(0)};": 0x80000000,
    f"abs.f32 %f1, {single(-2)};": bits(2),
    f"ex2.approx.ftz.f32 %f1, {single(3)};": bits(8),
    f"ex2.approx.ftz.f32 %f1, {single(-127)};": 0,
    f"cvt.rmi.f32.f32 %f1, {single(-0.5)};": bits(-1),
    f"cvt.sat.f32.f32 %f1, {single(1.5)};": bits(1),
    f"cvt.sat.f32.f32 %f1, {single(-1)};": 0,
    f"cvt.sat.f32.f32 %f1, {single(NAN)};": 0,
    "cvt.rn.f32.s32 %f1, 16777217;": bits(2**24),
    f"cvt.rn.f32.f64 %f1, {double(1 + 2**-24)};": bits(1),
    f"cvt.rn.f32.f64 %f1, {double(1 + 3 * 2**-24)};": bits(1 + 2**-22),
    "mov.b16 %h1, 1; cvt.f32.f16 %f1, %h1;": bits(TINY),
    "mov.b16 %h1, 0xfbff; cvt.f32.f16 %f1, %h1;": bits(-65504),
    "mov.b16 %h1, 0xc040; cvt.f32.bf16 %f1, %h1;": bits(-3),
    **{
        f"cvt.rzi.s32.f32 %r2, {single(value)}; mov.b32 %f1, %r2;": wanted & 0xFFFFFFFF
        for value, wanted in ((2.9, 2), (-2.9, -2), (3e9, 2**31 - 1), (-3e9, -(2**31)), (NAN, 0))
    },
    **{
        f"cvt.rzi.s32.f64 %r2, {double(value)}; mov.b32 %f1, %r2;": wanted & 0xFFFFFFFF
        for value, wanted in ((-2.9, -2), (3e9, 2**31 - 1), (NAN, -(2**31)))
    },
    **{
        f"cvt.rna.tf32.f32 %r2, {single(value)}; mov.b32 %f1, %r2;": bits(wanted)
        for value, wanted in (
            (1 + 2**-11, 1 + 2**-10),
            (-1 - 2**-11, -1 - 2**-10),
            (1 + 2**-12, 1),
            (INFINITY, INFINITY),
        )
    },
}
HALVES = {
    **{
        f"cvt.rn.f16.f32 %h1, {single(value)};": wanted
        for value, wanted in (
            (65519.996, 0x7BFF),
            (65520, 0x7C00),
            (-INFINITY, 0xFC00),
            (NAN, 0x7FFF),
            (TINY, 1),
            (TINY / 2, 0),
            (TINY / 2 * 1.001, 1),
            (TINY * 1.5, 2),
            (2**-14 - TINY / 4, 0x0400),
            (1 + 2**-11, 0x3C00),
            (1 + 3 * 2**-11, 0x3C02),
            (-0.0, 0x8000),
        )
    },
    **{
        f"cvt.rn.bf16.f32 %h1, {single(value)};": wanted
        for value, wanted in (
            (1 + 2**-8, 0x3F80),
            (1 + 3 * 2**-8, 0x3F82),
            (3.4e38, 0x7F80),
            (NAN, 0x7FFF),
            (-2, 0xC000),
        )
    },
    f"cvt.rn.f16x2.f32 %r2, {single(1)}, {single(2)}; mov.b32 {{%h2, %h1}}, %r2;": 0x3C00,
    f"cvt.rn.bf16x2.f32 %r2, {single(1)}, {single(2)}; mov.b32 {{%h1, %h2}}, %r2;": 0x4000,
}
UNORDERED = {
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), False),
    **dict.fromkeys(("equ", "neu", "ltu", "leu", "gtu", "geu"), True),
}
"""What comparisons say of what is not a number."""


@pytest.mark.parametrize(
    ("code", "store", "wanted"),
    [
        *((code, "st.global.u32 [%d1], %r1;", wanted) for code, wanted in INTEGERS.items()),
        *((code, "st.global.u64 [%d1], %d2;", wanted) for code, wanted in WIDE.items()),
        *((code, "st.global.f32 [%d1], %f1;", wanted) for code, wanted in FLOATS.items()),
        *((code, "st.global.u16 [%d1], %h1;", wanted) for code, wanted in HALVES.items()),
    ],
)
def test_arithmetic(code: str, store: str, wanted: int, machine: Machine) -> None:
    assert run(machine, code + store) == [wanted] * 32


@pytest.mark.parametrize("comparison", UNORDERED)
@pytest.mark.parametrize("number", ["f32", "f64"])
def test_comparisons_with_what_is_not_a_number(comparison: str, number: str, machine: Machine) -> None:
    write = single if number == "f32" else double
    code = f"setp.{comparison}.{number} %p1, {write(1)}, {write(NAN)}; selp.b32 %r1, 1, 0, %p1;"
    assert run(machine, code + "st.global.u32 [%d1], %r1;") == [int(UNORDERED[comparison])] * 32


STORE = "st.global.u32 [%d1], %r1;"
PROGRAMS: dict[str, tuple[str, int, Callable[[int], int]]] = {
    "branches": (
        """and.b32 %r2, %r0, 1; setp.eq.s32 %p1, %r2, 0; @%p1 bra EVEN;
        mov.u32 %r1, 10; bra.uni END;
        EVEN: mov.u32 %r1, 20;
        END: add.s32 %r1, %r1, %r0;""",
        32,
        lambda thread: (10 if thread % 2 else 20) + thread,
    ),
    "loops of different lengths": (
        """mov.u32 %r1, 0; mov.u32 %r2, 0;
        LOOP: setp.gt.u32 %p1, %r2, %r0; @%p1 bra END;
        add.s32 %r1, %r1, %r2; add.s32 %r2, %r2, 1; bra LOOP;
        END:""",
        64,
        lambda thread: thread * (thread + 1) // 2,
    ),
    "some threads end early": (
        "setp.lt.u32 %p1, %r0, 40; @%p1 ret; mov.u32 %r1, 7;",
        64,
        lambda thread: 0 if thread < 40 else 7,
    ),
    "shuffle": (
        "shfl.sync.bfly.b32 %r1|%p1, %r0, 5, 31, -1;",
        32,
        lambda thread: thread ^ 5,
    ),
    "shuffle in segments": (
        """shfl.sync.bfly.b32 %r1|%p1, %r0, 16, 0x100f, -1; @%p1 add.s32 %r1, %r1, 100;""",
        32,
        lambda thread: thread if thread < 16 else (thread ^ 16) + 100,  # later segments are out of reach
    ),
    "vote": (
        "and.b32 %r2, %r0, 1; setp.ne.s32 %p1, %r2, 0; vote.sync.ballot.b32 %r1, %p1, -1;",
        64,
        lambda _: 0xAAAAAAAA,
    ),
    "vote after branches": (
        """mov.u32 %r2, 1; setp.lt.u32 %p1, %r0, 3; @%p1 bra NEXT; mov.u32 %r2, 0;
        NEXT: setp.ne.s32 %p2, %r2, 0; vote.sync.ballot.b32 %r1, %p2, -1;""",
        32,
        lambda _: 7,
    ),
    "barrier": (
        """shl.b32 %r2, %r0, 2; mov.u32 %r3, memory; add.s32 %r4, %r3, %r2; st.shared.u32 [%r4], %r0;
        bar.sync 0; sub.s32 %r5, %r3, %r2; ld.shared.u32 %r1, [%r5+508];""",
        128,
        lambda thread: 127 - thread,
    ),
    "barrier of some": (
        """shl.b32 %r2, %r0, 2; mov.u32 %r3, memory; add.s32 %r4, %r3, %r2; st.shared.u32 [%r4], %r0;
        setp.ge.u32 %p1, %r0, 64; @%p1 bra OTHERS;
        barrier.sync 1, 64; sub.s32 %r5, %r3, %r2; ld.shared.u32 %r1, [%r5+252]; bra.uni END;
        OTHERS: barrier.sync 2, 64; sub.s32 %r5, %r3, %r2; ld.shared.u32 %r1, [%r5+764];
        END:""",
        128,
        lambda thread: 63 - thread if thread < 64 else 191 - thread,
    ),
    "barrier of a warp": (
        """shl.b32 %r2, %r0, 2; mov.u32 %r3, memory; add.s32 %r4, %r3, %r2; st.shared.u32 [%r4], %r0;
        bar.warp.sync -1; sub.s32 %r5, %r3, %r2; ld.shared.u32 %r1, [%r5+124];""",
        32,
        lambda thread: 31 - thread,
    ),
    "vectors": (
        """shl.b32 %r2, %r0, 4; mov.u32 %r3, memory; add.s32 %r3, %r3, %r2;
        mov.b16 %h1, 0x1234; mov.b16 %h2, 0x5678; mov.u32 %r4, 7;
        st.shared.v2.u16 [%r3+4], {%h1, %h2}; st.shared.u32 [%r3], %r0; st.shared.v2.u32 [%r3+8], {%r4, %r0};
        ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r3]; add.s32 %r1, %r5, %r6; add.s32 %r1, %r1, %r7;""",
        32,
        lambda thread: thread + 0x56781234 + 7,
    ),
    "phases": (
        # Threads of the first warp write what those of the second read, twice.
        """mov.u32 %r3, memory; setp.ne.s32 %p1, %r0, 0; @%p1 bra READY;
        mbarrier.init.shared::cta.b64 [%r3], 32; mbarrier.init.shared::cta.b64 [%r3+8], 32;
        READY: bar.sync 0; mov.u32 %r1, 0; mov.u32 %r4, 0; and.b32 %r5, %r0, 31; shl.b32 %r5, %r5, 2;
        add.s32 %r6, %r3, %r5; setp.lt.u32 %p1, %r0, 32; @!%p1 bra READER;
        WRITER: xor.b32 %r7, %r4, 1;
        FREE: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3+8], %r7; @!%p2 bra FREE;
        mad.lo.s32 %r8, %r4, 100, %r0; st.shared.u32 [%r6+16], %r8; mbarrier.arrive.shared::cta.b64 _, [%r3];
        add.s32 %r4, %r4, 1; setp.lt.s32 %p3, %r4, 2; @%p3 bra WRITER;
        bra.uni END;
        READER:
        FULL: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], %r4; @!%p2 bra FULL;
        sub.s32 %r7, %r3, %r5; ld.shared.u32 %r8, [%r7+140]; add.s32 %r1, %r1, %r8;
        mbarrier.arrive.shared::cta.b64 _, [%r3+8];
        add.s32 %r4, %r4, 1; setp.lt.s32 %p3, %r4, 2; @%p3 bra READER;
        END:""",
        64,
        lambda thread: 0 if thread < 32 else 2 * (63 - thread) + 100,
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, seed: int, machine: Machine) -> None:
    code, threads, wanted = PROGRAMS[name]
    found = run(machine, code + STORE, threads=threads, shared_bytes=1024, seed=seed)
    assert found == [wanted(thread) for thread in range(threads)]


def test_copies(machine: Machine) -> None:
    inputs = torch.arange(128, dtype=torch.int32)
    code = """shl.b32 %r2, %r0, 4; mov.u32 %r3, memory; add.s32 %r3, %r3, %r2; cvt.u64.u32 %d4, %r2;
    add.s64 %d4, %d3, %d4; and.b32 %r4, %r0, 1; shl.b32 %r4, %r4, 4;
    cp.async.cg.shared.global [%r3], [%d4], 16, %r4; cp.async.wait_all; ld.shared.u32 %r1, [%r3+8];"""
    found = run(machine, code + STORE, inputs, shared_bytes=512)
    assert found == [4 * thread + 2 if thread % 2 else 0 for thread in range(32)]


def test_atomic_additions(machine: Machine) -> None:
    sums = torch.zeros(2, dtype=torch.float32)
    sums[1] = 1e-45
    code = f"""atom.global.add.f32 %f1, [%d3], {single(2)};
    atom.global.add.f32 %f2, [%d3+4], {single(-0.0)};"""
    run(machine, code, sums, threads=64, blocks=3)
    assert sums.tolist() == [2 * 64 * 3, 0]


def test_blocks_know_where_they_are(machine: Machine) -> None:
    code = """mov.u32 %r2, %ctaid.x; mov.u32 %r3, %nctaid.x; mov.u32 %r4, %ntid.x;
    mad.lo.s32 %r5, %r2, %r4, %r0; mul.wide.u32 %d4, %r5, 4; add.s64 %d4, %d3, %d4;
    mad.lo.s32 %r6, %r3, 1000, %r5; st.global.u32 [%d4], %r6;"""
    places = torch.zeros(5 * 64, dtype=torch.int32)
    run(machine, code, places, threads=64, blocks=5)
    assert places.tolist() == list(range(5000, 5000 + 5 * 64))


def test_parameters_in_parts(machine: Machine) -> None:
    text = """.entry parts(.param .u32 first, .param .align 8 .b8 second[16])
    { .reg .b32 %r<4>; .reg .b64 %d<4>; .reg .b16 %h<2>; mov.b64 %d0, second; ld.param.u64 %d1, [%d0];
    ld.param.s32 %d2, [second+8]; ld.param.u8 %h1, [%d0+12]; ld.param.u32 %r1, [first];
    st.global.u64 [%d1], %d2; st.global.u16 [%d1+8], %h1; st.global.u32 [%d1+12], %r1; }"""
    found = torch.full((4,), -1, dtype=torch.int32)

    class Second(ctypes.Structure):
        _fields_ = [("address", ctypes.c_uint64), ("number", ctypes.c_int32), ("byte", ctypes.c_uint8)]

    second = Second(found.data_ptr(), -5, 200)
    machine.load(HEAD + text).launch("parts", ctypes.c_uint32(77), second, threads=1)
    assert found.tolist() == [-5, -1, 200 - 65536, 77]


@pytest.mark.parametrize(("dtype", "depth"), [(torch.float16, 16), (torch.bfloat16, 16), (torch.float32, 8)])
def test_products_of_a_warp(dtype: torch.dtype, depth: int, machine: Machine) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randint(-8, 9, size, generator=generator).float() for size in ((16, depth), (depth, 8), (16, 8))
    )
    registers = torch.zeros(32, 14, dtype=torch.int32)
    per_register = depth // 8
    for lane in range(32):
        group, member = lane // 4, lane % 4
        left, right = [], []
        for i in range(4 * per_register):
            register, part = divmod(i, per_register)
            column = member * per_register + part + (depth // 2 if register >= 2 else 0)
            left.append(a[group + 8 * (register % 2), column])
        for i in range(2 * per_register):
            register, part = divmod(i, per_register)
            right.append(b[member * per_register + part + register * depth // 2, group])
        registers[lane, :4] = torch.stack(left).to(dtype).view(torch.int32)
        registers[lane, 4:6] = torch.stack(right).to(dtype).view(torch.int32)
        sums = c[[group, group, group + 8, group + 8], [2 * member, 2 * member + 1] * 2]
        registers[lane, 6:10] = sums.view(torch.int32)
    kind = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "tf32"}[dtype]
    words = [*(f"%r{i}" for i in range(10, 16)), *(f"%f{i}" for i in range(16, 20))]
    loads = " ".join(
        f"ld.global.{'u' if word[1] == 'r' else 'f'}32 {word}, [%d4+{4 * i}];" for i, word in enumerate(words)
    )
    stores = " ".join(f"st.global.f32 [%d4+{4 * i + 40}], %f{i + 16};" for i in range(4))
    results = ", ".join(words[6:])
    code = f"""mul.wide.u32 %d4, %r0, 56; add.s64 %d4, %d3, %d4; {loads}
    mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32
    {{{results}}}, {{{", ".join(words[:4])}}}, {{{", ".join(words[4:6])}}}, {{{results}}}; {stores}"""
    run(machine, code, registers)
    found = torch.empty(16, 8)
    for lane in range(32):
        for i in range(4):
            result = registers[lane, 10 + i].view(torch.float32)
            found[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2] = result
    assert torch.equal(found, a @ b + c)


ACCUMULATORS = [f"%f{i}" for i in range(10, 74)]
SUMS = f"{{{', '.join(ACCUMULATORS)}}}"
FILL = """mul.wide.u32 %d4, %r0, 192; add.s64 %d4, %d3, %d4; mov.u32 %r2, memory;
mad.lo.s32 %r3, %r0, 192, %r2; mov.u32 %r4, 0;
FILL: ld.global.nc.v4.u32 {%r5, %r6, %r7, %r8}, [%d4]; st.shared.v4.u32 [%r3], {%r5, %r6, %r7, %r8};
add.s64 %d4, %d4, 16; add.s32 %r3, %r3, 16; add.s32 %r4, %r4, 1; setp.lt.s32 %p1, %r4, 12; @%p1 bra FILL;
"""
"""Copies 24 kB to shared memory, with 128 threads."""

DESCRIBE = """shr.u32 %r9, %r2, 4; cvt.u64.u32 %d5, %r9; or.b64 %d5, %d5, 0x4000004000010000;
add.s64 %d6, %d5, 512;
"""
"""Of 64 rows of 128 bytes, and of 128 more behind them; swizzled."""

ZERO = " ".join(f"mov.f32 {sum_}, 0f00000000;" for sum_ in ACCUMULATORS)


def multiply(kind: str = "f16", step: int = 0) -> str:
    return f"""add.s64 %d7, %d5, {2 * step}; add.s64 %d8, %d6, {2 * step};
    wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind} {SUMS}, %d7, %d8, 1, 1, 1, 0, 0;"""


COMMIT = "wgmma.commit_group.sync.aligned;"
AWAIT = "wgmma.wait_group.sync.aligned 0;"
FENCE = "wgmma.fence.sync.aligned;"
PUBLISH = "fence.proxy.async.shared::cta; bar.sync 0;"
KEEP = "mul.wide.u32 %d4, %r0, 256; add.s64 %d4, %d3, %d4;" + " ".join(
    f"st.global.f32 [%d4+{24576 + 4 * i}], {sum_};" for i, sum_ in enumerate(ACCUMULATORS)
)


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of 64 columns, and their image in shared memory with room for the results behind it."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, (rows, 64), generator=generator).float() for rows in (64, 128))
    image = torch.empty(192, 8, 8, dtype=dtype)
    chunks = torch.cat([a, b]).to(dtype).reshape(192, 8, 8)
    for row in range(192):
        for chunk in range(8):
            image[row, chunk ^ row % 8] = chunks[row, chunk]
    return a, b, torch.cat([image.reshape(-1).view(torch.int32), torch.zeros(128 * 64, dtype=torch.int32)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_products_of_four_warps(kind: str, dtype: torch.dtype, seed: int, machine: Machine) -> None:
    a, b, memory = operands(dtype)
    products = [multiply(kind, step) + COMMIT for step in (0, 1, 3)]
    code = FILL + PUBLISH + DESCRIBE + ZERO + FENCE + " ".join(products) + AWAIT + KEEP
    run(machine, code, memory, threads=128, shared_bytes=24576, seed=seed)
    registers = memory[6144:].view(torch.float32).reshape(128, 64)
    found = torch.empty(64, 128)
    for thread in range(128):
        for i in range(64):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (i // 2 % 2)
            found[row, i // 4 * 8 + thread % 4 * 2 + i % 2] = registers[thread, i]
    chosen = [*range(32), *range(48, 64)]
    assert torch.equal(found, a[:, chosen] @ b[:, chosen].T)


OWN = "shl.b32 %r2, %r0, 2; mov.u32 %r3, memory; add.s32 %r4, %r3, %r2;"
"""In %r4 the address of the thread's own word."""

OVERWRITE_OTHERS = "xor.b32 %r4, %r4, 128; st.shared.u32 [%r4], %r0;"
OTHER_MATRIX = "setp.lt.u32 %p1, %r0, 32; @%p1 add.s64 %d5, %d5, 2;"

WRONG_PRODUCTS = {
    "not published": (
        FILL + "bar.sync 0;" + DESCRIBE + ZERO + FENCE + multiply(),
        "without fence.proxy.async",
    ),
    "published by the reader": (
        FILL + "bar.sync 0; fence.proxy.async.shared::cta;" + DESCRIBE + ZERO + FENCE + multiply(),
        "without fence.proxy.async",
    ),
    "no barrier": (
        FILL + "fence.proxy.async.shared::cta;" + DESCRIBE + ZERO + FENCE + multiply(),
        "not ordered after the write|nothing has written",
    ),
    "no fence": (FILL + PUBLISH + DESCRIBE + ZERO + multiply(), "without wgmma.fence"),
    "fence before the last write": (
        FILL + PUBLISH + DESCRIBE + FENCE + ZERO + multiply(),
        "without wgmma.fence",
    ),
    "loaded after the fence": (
        FILL + PUBLISH + DESCRIBE + ZERO + FENCE + "ld.global.f32 %f73, [%d3];" + multiply(),
        "without wgmma.fence",
    ),
    "not awaited": (
        FILL + PUBLISH + DESCRIBE + ZERO + FENCE + multiply() + COMMIT + KEEP,
        "an accumulator is used while",
    ),
    "no batch": (
        FILL + PUBLISH + DESCRIBE + ZERO + FENCE + multiply() + AWAIT + KEEP,
        "an accumulator is used while",
    ),
    "ends before": (
        FILL + PUBLISH + DESCRIBE + ZERO + FENCE + multiply() + COMMIT,
        "ends before its products",
    ),
    "overwritten": (
        FILL + PUBLISH + DESCRIBE + ZERO + FENCE + multiply() + COMMIT + OWN + "st.shared.u32 [%r4], %r0;",
        "not ordered after a read by the tensor cores",
    ),
    "overwritten by another warp": (
        *(FILL + PUBLISH + DESCRIBE + ZERO + FENCE + multiply() + COMMIT + AWAIT + OWN + OVERWRITE_OTHERS,),
        "a race",
    ),
    "beyond shared memory": (
        FILL + PUBLISH + DESCRIBE + "add.s64 %d6, %d6, 64;" + ZERO + FENCE + multiply(),
        "beyond shared memory",
    ),
    "not where the swizzle begins": (
        FILL + PUBLISH + DESCRIBE + "add.s64 %d5, %d5, 8;" + ZERO + FENCE + multiply(),
        "does not begin where its swizzle does",
    ),
    "another swizzle": (
        FILL + PUBLISH + DESCRIBE + "xor.b64 %d5, %d5, 0x8000000000000000;" + ZERO + FENCE + multiply(),
        "of another kind",
    ),
    "different matrices": (
        FILL + PUBLISH + DESCRIBE + ZERO + FENCE + OTHER_MATRIX + multiply() + COMMIT + AWAIT,
        "different matrices",
    ),
}


@pytest.mark.parametrize("name", WRONG_PRODUCTS)
def test_wrong_products_are_refused(name: str, machine: Machine) -> None:
    code, message = WRONG_PRODUCTS[name]
    memory = operands(torch.float16)[2]
    with pytest.raises(PtxError, match=message):
        run(machine, code, memory, threads=128, shared_bytes=24576)


REFUSED: dict[str, tuple[str, int, str]] = {
    "race in a warp": (
        OWN + "st.shared.u32 [%r4], %r0; xor.b32 %r5, %r4, 4; ld.shared.u32 %r1, [%r5];",
        32,
        "a race: the read is not ordered after the write of line",
    ),
    "race of warps": (
        OWN + "st.shared.u32 [%r4], %r0; bar.warp.sync -1; xor.b32 %r5, %r4, 128; ld.shared.u32 %r1, [%r5];",
        64,
        "a race|nothing has written",
    ),
    "race with a reader": (
        OWN
        + """st.shared.u32 [%r4], %r0; bar.sync 0; xor.b32 %r5, %r4, 128; ld.shared.u32 %r1, [%r5];
        st.shared.u32 [%r4], %r1;""",
        64,
        "a race: the write is not ordered after a read by thread|a race: the read",
    ),
    "race of writers": (
        "mov.u32 %r3, memory; st.shared.u32 [%r3], %r0;",
        32,
        "a race: the write is not ordered after that of",
    ),
    "a vote is no barrier": (
        OWN
        + """st.shared.u32 [%r4], %r0; vote.sync.ballot.b32 %r6, %p1, -1;
        xor.b32 %r5, %r4, 4; ld.shared.u32 %r1, [%r5];""",
        32,
        "a race",
    ),
    "never written": (OWN + "ld.shared.u32 %r1, [%r4];", 32, "that nothing has written"),
    "half written": (
        OWN + "mov.b16 %h1, 1; st.shared.u16 [%r4], %h1; ld.shared.u32 %r1, [%r4];",
        32,
        "that nothing has written",
    ),
    "beyond shared memory": (OWN + "st.shared.u32 [%r4+1020], %r0;", 32, "beyond shared memory"),
    "below shared memory": (OWN + "st.shared.u32 [%r4+-4], %r0;", 32, "beyond shared memory.* thread 0"),
    "misaligned shared access": (OWN + "st.shared.v2.u32 [%r4], {%r0, %r0};", 32, "misaligned.* thread 1"),
    "race for global memory": (
        "xor.b32 %r2, %r0, 1; mul.wide.u32 %d2, %r2, 8; add.s64 %d2, %d0, %d2; st.global.u32 [%d1], %r0;"
        "ld.global.u32 %r1, [%d2];",
        32,
        "a race: the read is not ordered after a write by thread",
    ),
    "misaligned global access": ("ld.global.u32 %r1, [%d1+2];", 32, "misaligned access to global memory"),
    "no memory": ("mov.u64 %d2, 64; ld.global.u32 %r1, [%d2];", 32, "global memory that is not its own"),
    "copy read early": (
        OWN + "cp.async.cg.shared.global [%r3], [%d3], 16, 0; ld.shared.u32 %r1, [%r3];",
        1,
        "before it is waited for",
    ),
    "copy overwritten early": (
        OWN + "cp.async.cg.shared.global [%r3], [%d3], 16, 0; st.shared.u32 [%r3+12], %r0;",
        1,
        "before it is waited for",
    ),
    "copy of another's": (
        OWN
        + """setp.ne.u32 %p1, %r0, 0; @%p1 bra NEXT; cp.async.cg.shared.global [%r3], [%d3], 16, 0;
        cp.async.wait_all; NEXT: ld.shared.u32 %r1, [%r3];""",
        64,
        "a race|nothing has written",
    ),
    "barrier that not all reach": (
        "setp.lt.u32 %p1, %r0, 32; @%p1 barrier.sync 1, 64;",
        64,
        "nothing can run",
    ),
    "barrier in one branch": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra NEXT; bar.sync 0; NEXT: bar.sync 1;",
        32,
        "nothing can run any more",
    ),
    "shuffle in one branch": (
        """setp.lt.u32 %p1, %r0, 16; @%p1 bra NEXT; shfl.sync.bfly.b32 %r1|%p2, %r0, 1, 31, -1;
        NEXT: bar.warp.sync -1;""",
        32,
        "nothing can run any more",
    ),
    "shuffle with the dead": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 ret; shfl.sync.bfly.b32 %r1|%p2, %r0, 1, 31, -1;",
        32,
        "threads that have ended",
    ),
    "shuffle from outside": (
        "shfl.sync.bfly.b32 %r1|%p2, %r0, 16, 31, 0xffff;",
        16,
        "a thread that takes no part",
    ),
    "mask without oneself": ("bar.warp.sync 1;", 32, "not among those that it names"),
    "no phase barrier": (OWN + "mbarrier.arrive.shared::cta.b64 _, [%r3];", 32, "no phase barrier"),
    "phase barrier read": (
        OWN + "mbarrier.init.shared::cta.b64 [%r3], 1; ld.shared.u32 %r1, [%r3];",
        1,
        "a read of a phase barrier's memory",
    ),
    "phase barrier overwritten": (
        OWN + "mbarrier.init.shared::cta.b64 [%r3], 1; st.shared.u32 [%r3+4], %r0;",
        1,
        "a write to a phase barrier's memory",
    ),
    "phase barrier before it is there": (
        """mov.u32 %r3, memory; setp.ne.u32 %p1, %r0, 0; @%p1 bra NEXT;
        mbarrier.init.shared::cta.b64 [%r3], 32; NEXT: mbarrier.arrive.shared::cta.b64 _, [%r3];""",
        32,
        "a race: a phase barrier|no phase barrier",
    ),
    "registers of no four warps": ("setmaxnreg.dec.sync.aligned.u32 24;", 64, "needs four warps"),
    "registers that are none": ("setmaxnreg.dec.sync.aligned.u32 20;", 128, "multiple of 8"),
    "fewer by more": ("setmaxnreg.inc.sync.aligned.u32 24;", 128, "other direction"),
    "bits that TensorFloat-32 lacks": (
        f"""mov.b32 %r1, {single(0.1)};
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%f1, %f2, %f3, %f4}}, {{%r1, %r1, %r1, %r1}},
        {{%r1, %r1}}, {{%f1, %f2, %f3, %f4}};""",
        32,
        "more bits than TensorFloat-32",
    ),
    "trap": ("trap;", 32, "a trap"),
    "no end": ("LOOP: bra LOOP;", 32, "runs for too long"),
    "too many threads": ("", 257, "a block of 257 threads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_leaves_undefined_is_refused(name: str, machine: Machine) -> None:
    code, threads, message = REFUSED[name]
    with pytest.raises(PtxError, match=message):
        run(machine, code, torch.zeros(4, dtype=torch.int32), threads=threads, shared_bytes=1024)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("st.global.u32 [%d3], %r0;", "a race: another block writes there too"),
        (
            "atom.global.add.f32 %f1, [%d3], %f2; ld.global.u32 %r1, [%d3];",
            "a race: another block writes what is read",
        ),
        (
            "st.global.u32 [%d1], %r0; ld.global.nc.u32 %r1, [%d1];",
            "ld.global.nc reads what the kernel writes",
        ),
    ],
)
def test_races_of_blocks_are_refused(code: str, message: str, machine: Machine) -> None:
    with pytest.raises(PtxError, match=message):
        run(machine, code, torch.zeros(4, dtype=torch.int32), threads=1, blocks=2)


def test_threads_may_hand_on_global_memory(machine: Machine) -> None:
    code = "st.global.u32 [%d1], %r0; bar.sync 0; ld.global.u32 %r1, [%d0+504]; bar.sync 0;"
    assert run(machine, code + "st.global.u32 [%d1], %r1;", threads=64) == [63] * 64


@pytest.mark.parametrize(
    "code",
    [
        "ld.volatile.shared.u32 %r1, [%r2];",
        "ld.shared.u8 %h1, [%r2];",
        "add.rz.f32 %f1, %f2, %f3;",
        "add.s32 %r1, %r2;",
        "add.s32 1, %r1, %r2;",
        "add.s32 %tid.x, %r1, %r2;",
        "add.s32 %r1, _, %r2;",
        "add.s32 %r1, %r2, %d2;",
        "add.s32 %r1, %r2, %unknown;",
        "mov.u32 %r1, %clock;",
        "bra NOWHERE;",
        "@%r1 bra END; END:",
        ".local .b8 depot[8];",
        "call function;",
        f"wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {SUMS}, %d2, %d4, 1, -1, 1, 0, 0;",
    ],
)
def test_what_is_not_known_is_refused(code: str, machine: Machine) -> None:
    with pytest.raises(PtxError, match=r"line \d+: "):
        run(machine, code)


def test_names_may_have_other_hashes(machine: Machine) -> None:
    name = "_ZN6dcnzoo4cuda43_GLOBAL__N__{}_10_regions_cu_{}10nms_kernelENS0_11SuppressionE"
    text = f".entry {name.format('9097609e', '6a646f78')}() .maxntid 64, 1, 1 {{ trap; }}"
    module = machine.load(HEAD + text)
    found = module.find(name.format("01234567", "89abcdef"))
    assert found is not None
    assert (found.max_threads, found.is_stub, found.num_params) == (64, 1, 0)
    assert module.find("_ZN6dcnzoo4cuda3fooE") is None


Reports = dict[str, dict[str, dict[str, float | str]]]
"""What runs report, by target and name."""


@pytest.fixture(scope="session")
def reports(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Of the compiled kernels."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("ptx")

    def report(target: str) -> dict[str, dict[str, float | str]]:
        for source in KERNEL_SOURCES:
            simulator.compile_ptx(source, target, folder)
        program = subprocess.run(
            [sys.executable, "-m", ptx_cases.__name__, target, str(folder)],
            env=os.environ | {"DCNZOO_EMULATOR": str(library)},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in program.stdout.splitlines()]
        assert program.returncode == 0, program.stderr
        return {line["name"]: line for line in lines}

    with ThreadPoolExecutor(len(TARGETS)) as pool:
        return dict(zip(TARGETS, pool.map(report, TARGETS), strict=True))


@pytest.mark.parametrize(
    ("target", "name"), [(target, name) for target in TARGETS for name in runs_of(target)]
)
def test_compiled_kernels_agree_with_the_reference(target: str, name: str, reports: Reports) -> None:
    found = reports[target][name]
    assert "fault" not in found, found["fault"]
    assert float(found["error"]) <= 1


@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_compiled_kernels_are_found(name: str, reports: Reports) -> None:
    found = reports[FAULTS[name].target][name]
    assert "fault" in found, found
    assert FAULTS[name].matches(str(found["fault"])), found["fault"]
