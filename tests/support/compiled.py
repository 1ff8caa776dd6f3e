"""A program that compiles all Triton kernels for an NVIDIA card of compute capability 9.0, without one."""

import torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fedmr_flwr.data.base import Examples
from fedmr_flwr.gpu import fetch
from fedmr_flwr.models import kernels
from fedmr_flwr.models.kernels import Shape

TYPES = {torch.float32: "*fp32", torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64"}


def compile_only(kernel, *arguments, grid, warmup, num_warps=4, num_stages=3):
    """Compile a kernel for its arguments instead of running it, and print its name."""
    signature, constants = {}, {}
    for at, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[at,] = "constexpr", value
        else:
            signature[parameter.name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options=options)
    print(kernel.__name__)


JITFunction.run = compile_only
for counts in None, torch.zeros(3, dtype=torch.int32):
    lanes, own = (1, ()) if counts is None else (3, (3,))
    for shape in Shape(2, 9, 9, 5, 3, 1, 1, 2), Shape(20, 1, 1, 70):
        single = shape.pool == 1
        inputs = torch.zeros(4 * lanes, shape.channels, *(() if single else (shape.height, shape.width)))
        window = () if single else (shape.kernel, shape.kernel)
        weight, bias = torch.zeros(*own, shape.outputs, shape.channels, *window), torch.zeros(*own, shape.outputs)
        out, winners = kernels.forward(inputs, weight, bias, shape, True, True, counts)
        if single:
            kernels.linear_gradients(inputs, out, winners, weight, True, True, counts)
        else:
            kernels.convolution_gradients(inputs, out, winners, weight, shape, True, True, counts)
    kernels.cross_entropy(torch.zeros(4 * lanes, 5), torch.zeros(4 * lanes, dtype=torch.long), counts)
examples, zeros = Examples(torch.zeros(4, 6), torch.zeros(4, dtype=torch.long)), torch.zeros(3, 4, dtype=torch.long)
fetch.fetch(examples, zeros[0], zeros[0], 2)
fetch.fetch_all(examples, zeros, zeros.view(2, 3, 2), zeros[0, 0], torch.zeros(3, dtype=torch.int32), 2)
