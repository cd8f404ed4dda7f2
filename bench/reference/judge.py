"""Judges adversarial images: one judge for both sides, the PyTorch classifier, without counting."""

import torch
from torch import Tensor, nn

from counting import predictions

# how far an image may leave box and budget before it counts as outside: the rounding of sums in f32
TOLERANCE = 1e-6

# a budget in which every image of the box lies, for attacks that look for the smallest change
UNLIMITED = {"linf": 1.0, "l2": 1e3, "l1": 1e6, "l0": 1e6}


def distances(norm: str, original: Tensor, adversarial: Tensor) -> Tensor:
    """How far each image was changed, in f64."""
    change = (adversarial.double() - original.double()).flatten(1)
    if norm == "linf":
        return change.abs().amax(1)
    if norm == "l2":
        return change.square().sum(1).sqrt()
    if norm == "l1":
        return change.abs().sum(1)
    return (change != 0).sum(1).double()


class Verdict:
    """What became of each image."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        adversarial: Tensor,
        *,
        norm: str,
        eps: float | None,
        target: int | None,
    ):
        self.norm, self.eps = norm, eps
        self.distance = distances(norm, images, adversarial)
        self.nan = ~adversarial.flatten(1).isfinite().all(1)
        out = torch.maximum(-adversarial, adversarial - 1).flatten(1).amax(1).double()
        far = self.distance - eps if eps is not None else torch.full_like(self.distance, -torch.inf)
        self.out, self.far = out.masked_fill(self.nan, 0.0), far.masked_fill(self.nan, 0.0)
        # sums over many values round in proportion to their size
        slack = TOLERANCE * max(1.0, eps or 0.0)
        self.outside = self.nan | (self.out > TOLERANCE) | (self.far > slack)
        predicted = predictions(model, adversarial)
        self.changed_class = predicted == target if target is not None else predicted != labels
        # an image outside the budget is no success, and an image of NaN fools every classifier
        self.fooled = self.changed_class & ~self.outside

    def violations(self) -> dict | None:
        """How images left box or budget, if any did."""
        if not self.outside.any():
            return None
        return {
            "images": int(self.outside.sum()),
            "of_these_nan": int(self.nan.sum()),
            "of_these_misclassified": int((self.outside & self.changed_class).sum()),
            "most_beyond_box": max(0.0, float(self.out.max())),
            "most_beyond_budget": max(0.0, float(self.far.max())),
        }


def middle(values: Tensor) -> float | None:
    """The median, with the mean of the two middle values where there are two; `None` where it is infinite."""
    if len(values) == 0:
        return None
    ordered = values.sort().values
    found = float(ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    return found if found < float("inf") else None


def robust(verdict: Verdict, given: Tensor, total: int) -> dict:
    """The samples that were classified right (or not as the target) and still are."""
    count = int((given & ~verdict.fooled).sum())
    return {"count": count, "total": total, "share": count / total}


def smallest(verdict: Verdict, given: Tensor, both: Tensor) -> dict:
    """What an attack that looks for the smallest change has found."""
    fooled = verdict.fooled & given
    everywhere = verdict.distance.masked_fill(~verdict.fooled, float("inf"))[given]
    shared = verdict.distance[both]
    return {
        "success": int(fooled.sum()) / max(1, int(given.sum())),
        "median_all": middle(everywhere),
        "median_both": middle(shared),
        "mean_both": float(shared.mean()) if len(shared) else None,
    }


def paired(peer: Verdict, ours: Verdict, given: Tensor, minimum: bool) -> dict:
    """What the sides have in common, sample by sample."""
    both = peer.fooled & ours.fooled & given
    found = {
        "both": int(both.sum()),
        "only_peer": int((peer.fooled & ~ours.fooled & given).sum()),
        "only_ours": int((ours.fooled & ~peer.fooled & given).sum()),
    }
    if minimum and both.any():
        theirs, own = peer.distance[both], ours.distance[both]
        near = (theirs - own).abs() <= 1e-3 * theirs
        found |= {
            "ours_smaller": int((~near & (own < theirs)).sum()),
            "within_a_thousandth": int(near.sum()),
            "ours_larger": int((~near & (own > theirs)).sum()),
        }
    return found


def alike(peer: Tensor, ours: Tensor, both: Tensor) -> dict:
    """Of the samples that both sides fooled, how many have the same image, and the share of equal values."""
    change = (peer - ours)[both].abs().flatten(1)
    if len(change) == 0:
        return {"images": 0, "of": 0, "values": None}
    return {
        "images": int((change.amax(1) <= 1e-4).sum()),
        "of": len(change),
        "values": float((change <= 1e-6).float().mean()),
    }
