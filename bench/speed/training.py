"""Training in PyTorch: a classifier from scratch, and a round of talion's restoration network.

Both follow talion's recipes (optimiser, schedule, losses), written as a PyTorch user writes them.
"""

import math
import re
from fractions import Fraction

import attacks
import compiling
import machine
import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from trn import Prepared, Trn

# rows attacked or prepared at once
CHUNK = 128
# talion's weights of the losses of a restored image: pixels, logits, class, gate
LOSSES = (10.0, 1.0, 0.5, 0.5)


def one_cycle(step: int, total: int, peak: float, warmup: float) -> float:
    """A straight line up during the first share, then a cosine to zero."""
    done = (step + 0.5) / max(total, 1)
    if done < warmup:
        return peak * done / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min((done - warmup) / (1 - warmup), 1)))


def groups(model: nn.Module, decay: float) -> list[dict]:
    """Norms and biases are not decayed."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def initialise(model: nn.Module) -> None:
    """He's normal weights, by fan-out, and biases of zero."""
    for name, weight in model.named_parameters():
        if weight.dim() == 4:
            nn.init.kaiming_normal_(weight, mode="fan_out")
        elif name.endswith("bias"):
            nn.init.zeros_(weight)


def arithmetic(setting: str, precision: str = "auto") -> torch.autocast:
    """bf16 where the processor has it, except by default and where the job wants f32."""
    wanted = setting == "autocast" or (setting != "default" and precision != "f32" and machine.bf16())
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=wanted)


class Scaled(nn.Module):
    """A network behind the standardisation of its images."""

    def __init__(self, network: nn.Module, images: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("mean", images.mean((0, 2, 3), keepdim=True))
        self.register_buffer("std", images.std((0, 2, 3), keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


class ClassifierTraining:
    """One pass over the images; what is made before the clock starts is made here."""

    def __init__(self, images: Tensor, labels: Tensor, job: dict):
        torch.manual_seed(job["seed"])
        self.images, self.labels, self.job = images, labels, job
        classes = job.get("classes") or int(labels.max()) + 1
        network = networks.build(job["architecture"], images.shape[1], classes)
        initialise(network)
        self.model = Scaled(network, images).train()
        setting = job["setting"]
        if setting != "default":
            self.model.to(memory_format=torch.channels_last)
        self.called = torch.compile(self.model, **compiling.options()) if setting == "compile" else self.model

    def run(self) -> float:
        """The last loss."""
        job, batch = self.job, self.job["batch"]
        fused = {} if job["setting"] == "default" else {"fused": True}
        optimiser = torch.optim.SGD(groups(self.model, 5e-4), lr=0.1, momentum=0.9, nesterov=True, **fused)
        steps, epochs = len(self.images) // batch, job.get("epochs", 1)
        if steps == 0:
            raise ValueError(f"{len(self.images)} images make no batch of {batch}")
        for step in range(steps * epochs):
            if step % steps == 0:
                order = torch.randperm(len(self.images))
            rows = order[step % steps * batch :][:batch]
            images = self.images[rows]
            if job["setting"] != "default":
                images = images.contiguous(memory_format=torch.channels_last)
            with arithmetic(job["setting"], job.get("precision", "f32")):
                logits = self.called(images)
            loss = F.cross_entropy(logits.float(), self.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            set_rate(optimiser, one_cycle(step, steps * epochs, 0.1, 0.25))
            optimiser.step()
        return float(loss.detach())


class TrnTraining:
    """A round: the images are attacked and prepared, then shown once."""

    def __init__(
        self,
        classifier: nn.Module,
        card: dict,
        tensors: dict[str, Tensor],
        images: Tensor,
        labels: Tensor,
        job: dict,
    ):
        torch.manual_seed(job["seed"])
        # whoever trains a defence freezes what it defends
        self.classifier, self.job = classifier.requires_grad_(False), job
        self.images, self.labels = images[: job["pool"]], labels[: job["pool"]]
        self.trn = Trn(card["spec"])
        initialise(self.trn.main)
        nn.init.zeros_(self.trn.main.decoder.output.weight)
        if self.trn.first is not None:
            first = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("first.")}
            self.trn.first.load_state_dict(first, strict=True)
            self.trn.first.requires_grad_(False)
        setting = job["setting"]
        if setting != "default":
            self.trn.to(memory_format=torch.channels_last)
        if setting == "compile":
            self.trn.main.compile(**compiling.options())

    def run(self) -> float:
        """The last loss."""
        attacked = self.attacked()
        prepared, answers = self.prepared(attacked)
        job, batch = self.job, self.job["batch"]
        fused = {} if job["setting"] == "default" else {"fused": True}
        optimiser = torch.optim.AdamW(groups(self.trn, 1e-4), lr=2e-3, betas=(0.9, 0.99), **fused)
        average = AveragedModel(self.trn.main, multi_avg_fn=get_ema_multi_avg_fn(0.995))
        steps = len(attacked) // batch
        if steps == 0:
            raise ValueError(f"{len(attacked)} images make no batch of {batch}")
        weights = [weight for weight in self.trn.parameters() if weight.requires_grad]
        order = torch.randperm(len(attacked))
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            loss = self.loss(
                self.images[rows], self.labels[rows], attacked[rows], prepared.rows(rows), answers[rows]
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 5.0)
            set_rate(optimiser, one_cycle(step, steps, 2e-3, 0.1))
            optimiser.step()
            average.update_parameters(self.trn.main)
        return float(loss.detach())

    def attacked(self) -> Tensor:
        found = re.fullmatch(r"pgd-(\d+)@(.+)", self.job["attack"])
        if found is None:
            raise ValueError(f"the attack of training is written pgd-7@8/255, not {self.job['attack']}")
        steps, eps = int(found[1]), float(Fraction(found[2]))
        attack = {"attack": "pgd", "steps": steps, "eps": eps, "step": 2.5 * eps / steps, "batch": CHUNK}
        with arithmetic(self.job["setting"]):
            return attacks.run(
                self.classifier, self.images, self.labels, attack | {"peer": "loop", "seed": self.job["seed"]}
            )

    def prepared(self, attacked: Tensor) -> tuple[Prepared, Tensor]:
        """What no training step changes: first pass and maps, and the classifier's answers to the clean
        images."""
        parts, answers = [], []
        with torch.no_grad(), arithmetic(self.job["setting"]):
            for clean, part in zip(self.images.split(CHUNK), attacked.split(CHUNK), strict=True):
                answers.append(self.classifier(clean).float().softmax(1))
                parts.append(self.trn.prepare(self.classifier, part))
        return Prepared.join(parts), torch.cat(answers)

    def loss(
        self, clean: Tensor, labels: Tensor, attacked: Tensor, prepared: Prepared, answers: Tensor
    ) -> Tensor:
        with arithmetic(self.job["setting"]):
            change = self.trn.change(attacked, prepared)
            restored = change.apply(attacked, self.trn.bound)
            logits = self.classifier(restored)
        found = logits.float().log_softmax(1)
        pixel, logit, classification, detection = LOSSES
        loss = pixel * F.l1_loss(restored, clean)
        loss = loss + logit * F.kl_div(found, answers, reduction="batchmean")
        loss = loss + classification * F.nll_loss(found, labels)
        if change.gate is not None:
            moved = ((attacked - clean).abs().amax((1, 2, 3), keepdim=True) > 0).float()
            loss = loss + detection * F.binary_cross_entropy_with_logits(change.gate.float(), moved)
        return loss
