"""What else a run is held against: the best loop that we can write by hand for it, and its convolutions alone.

Nothing of bnexp is in either loop; their processes are settled as bnexp's are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bnexp.bench.measure import steady_rate
from bnexp.bench.networks import network
from bnexp.bench.sizes import Size
from bnexp.bench.textbook import LR, MOMENTUM, WEIGHT_DECAY
from bnexp.engine.build import HostData
from bnexp.engine.device import num_cores, settle_process

WARM_UP_STEPS = 3  # ahead of a capture
STEPS_AT_ONCE, STEPS_AT_ONCE_ON_GPU = 10, 200  # of the convolutions, between two looks at the clock


def hand_written(size: Size, host: HostData, device: torch.device, seconds: float, *, bf16: bool) -> float:
    """Images a second of `epochs`."""
    settle_process(num_cores(), device)
    return steady_rate(epochs(size, host, device, bf16=bf16), seconds=seconds, warm_up=1)


def epochs(size: Size, host: HostData, device: torch.device, *, bf16: bool) -> Iterator[int]:
    """Train one network without end; yields the images of each epoch once it is done.

    The whole data set is on the device as bytes, channels are last, autocast to bf16 where asked, the optimizer fused,
    the loss read once an epoch; on CUDA a step is one graph.
    """
    torch.manual_seed(0)
    split, images = host.split.train, host.images
    x_all = torch.from_numpy(images.train_images[split]).to(device)
    y_all = torch.from_numpy(images.train_labels[split]).to(device)
    mean, std = (torch.as_tensor(each).float().view(1, -1, 1, 1).to(device) for each in (host.mean, host.std))
    model = network(size).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    criterion = nn.CrossEntropyLoss()
    x, y = x_all[: size.batch_size].clone(), y_all[: size.batch_size].clone()
    loss_sum, num_correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)

    def step() -> None:
        batch = ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(batch)
        loss = criterion(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum.add_(loss.detach())
        num_correct.add_((logits.argmax(1) == y).sum())

    launch = captured(step, device)
    num_steps = len(x_all) // size.batch_size
    while True:
        order = torch.randperm(len(x_all), device=device)
        loss_sum.zero_()
        num_correct.zero_()
        for k in range(num_steps):
            index = order[k * size.batch_size : (k + 1) * size.batch_size]
            torch.index_select(x_all, 0, index, out=x)
            torch.index_select(y_all, 0, index, out=y)
            launch()
        if not torch.isfinite(loss_sum).item():
            raise ValueError("the hand-written loop has diverged")
        yield num_steps * size.batch_size


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The step as one CUDA graph, once it has run a few times; the step itself elsewhere."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def convolutions_alone(size: Size, host: HostData, device: torch.device, seconds: float, *, bf16: bool) -> float:
    """Images a second of nothing but the network's convolutions, forward and backward: what is left is overhead."""
    settle_process(num_cores(), device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    layers = [
        (conv.to(device, dtype).to(memory_format=torch.channels_last), _like(shape, device, dtype), index > 0)
        for index, (conv, shape) in enumerate(convolutions_of(size))
    ]
    gradients = [torch.randn_like(conv(x)) for conv, x, _ in layers]

    def step() -> None:
        for (conv, x, by_input), gradient in zip(layers, gradients, strict=True):
            x.requires_grad_(by_input)  # nothing needs the gradient by the images
            torch.autograd.grad(conv(x), [x, conv.weight] if by_input else [conv.weight], gradient)

    def steps() -> Iterator[int]:
        launch = captured(step, device)
        num = STEPS_AT_ONCE_ON_GPU if device.type == "cuda" else STEPS_AT_ONCE
        while True:
            for _ in range(num):
                launch()
            torch.get_device_module(device).synchronize()
            yield num * size.batch_size

    return steady_rate(steps(), seconds=seconds, warm_up=1)


def convolutions_of(size: Size) -> list[tuple[nn.Conv2d, torch.Size]]:
    """The network's convolutions in their order, and the shape of what each is given, (N, C, H, W)."""
    found: list[tuple[nn.Conv2d, torch.Size]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, inputs[0].shape))

    model = network(size).eval()
    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(size.batch_size, size.channels, size.side, size.side))
    for hook in hooks:
        hook.remove()
    return found


def _like(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
