"""SVF's baseline, PFENet and BAM written out plainly, on official state dicts by their official names, in float64.

Written anew from the behaviour of the official code, and of none of this package's modules, so that the two can be
compared. Supports are a loop, a resize aligns corners, BatchNorm uses its statistics, dropout is off.
"""

import torch
from torch.nn import functional as F

VGG_CONVS = (2, 2, 3, 3, 3)


def resize(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def conv(s, name, x, **how):
    if f"{name}.vector_S" in s:
        x = F.conv2d(x, s[f"{name}.conv_V.weight"], **how) * s[f"{name}.vector_S"]
        return F.conv2d(x, s[f"{name}.conv_U.weight"], s.get(f"{name}.conv_U.bias"))
    return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **how)


def norm(s, name, x):
    return F.batch_norm(x, *(s[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def relu_conv(s, name, x, **how):
    return conv(s, name, x, **how).relu()


# ---------------------------------------------------------------------------------------------------------------------
# Backbones: a function of stage number, prefix and input


def vgg_stage(s, number, prefix, x):
    """Numbers count from 0 in every stage; the pools of the first four round up, the fifth is left out."""
    for i in range(VGG_CONVS[number]):
        x = norm(s, f"{prefix}.{3 * i + 1}", conv(s, f"{prefix}.{3 * i}", x, padding=1)).relu()
    return F.max_pool2d(x, 2, 2, ceil_mode=True) if number < 4 else x


def resnet_stage(dilation):
    def stage(s, number, prefix, x):
        if number == 0:
            for i, stride in enumerate((2, 1, 1)):
                x = norm(s, f"{prefix}.{3 * i + 1}", conv(s, f"{prefix}.{3 * i}", x, stride=stride, padding=1)).relu()
            return F.max_pool2d(x, 3, 2, padding=1)
        last, block = {1: 1, 2: 1, 3: 2, 4: 4}[number], 0
        while f"{prefix}.{block}.bn1.weight" in s:
            name, stride = f"{prefix}.{block}", 2 if number == 2 and block == 0 else 1
            d = last // 2 if dilation == "torchvision" and block == 0 and number > 2 else last
            y = norm(s, f"{name}.bn1", conv(s, f"{name}.conv1", x)).relu()
            y = norm(s, f"{name}.bn2", conv(s, f"{name}.conv2", y, stride=stride, padding=d, dilation=d)).relu()
            y = norm(s, f"{name}.bn3", conv(s, f"{name}.conv3", y))
            if block == 0:
                x = norm(s, f"{name}.downsample.1", conv(s, f"{name}.downsample.0", x, stride=stride))
            x, block = (x + y).relu(), block + 1
        return x

    return stage


# ---------------------------------------------------------------------------------------------------------------------
# What the methods share


def features(s, stage, image, mask=None, suffix=""):
    """Low and mid-level feature at layer3's size, and the deepest; of a support, its object alone."""
    x, outputs = image, []
    for number in range(4):
        x = stage(s, number, f"layer{number}{suffix}", x)
        outputs.append(x)
    low = resize(outputs[2], x.shape[-2:])
    deep = stage(s, 4, f"layer4{suffix}", x if mask is None else x * resize(mask, x.shape[-2:]))
    return low, torch.cat([x, low], 1), deep if mask is None else deep * resize(mask, deep.shape[-2:])


def encoded(s, stage, e):
    """Of the query its low feature, feature and deepest one; of every support low feature, prototype, prior."""
    low, mid, deep = features(s, stage, e.query_image)
    query = relu_conv(s, "down_query.0", mid)
    supports = []
    for k in range(e.shot):
        mask = (e.support_masks[:, k] == 1).to(mid.dtype).unsqueeze(1)
        its_low, its_mid, its_deep = features(s, stage, e.support_images[:, k], mask)
        small = resize(mask, its_mid.shape[-2:])
        f = relu_conv(s, "down_supp.0", its_mid)
        prototype = (f * small).sum((2, 3), keepdim=True) / (small.sum((2, 3), keepdim=True) + 5e-4)
        supports.append((its_low, prototype, resize(prior(deep, its_deep), query.shape[-2:])))
    return low, query, deep, supports


def prior(query, support):
    q, s = query.flatten(2), support.flatten(2)
    cosine = (s.transpose(1, 2) @ q) / (s.norm(dim=1)[:, :, None] * q.norm(dim=1)[:, None] + 1e-7)
    best = cosine.max(1).values
    low, high = best.min(1, keepdim=True).values, best.max(1, keepdim=True).values
    return ((best - low) / (high - low + 1e-7)).view(len(q), 1, *query.shape[-2:])


def aspp_head(s, query, prototype, prior):
    x = relu_conv(s, "init_merge.0", torch.cat([query, prototype.expand_as(query), prior], 1))
    pooled = relu_conv(s, "ASPP_meta.layer6_0.0", x.mean((2, 3), keepdim=True)).expand_as(x)
    branches = [pooled, relu_conv(s, "ASPP_meta.layer6_1.0", x)]
    branches += [
        relu_conv(s, f"ASPP_meta.layer6_{i}.0", x, padding=d, dilation=d) for i, d in ((2, 6), (3, 12), (4, 18))
    ]
    x = relu_conv(s, "res1_meta.0", torch.cat(branches, 1))
    x = x + relu_conv(s, "res2_meta.2", relu_conv(s, "res2_meta.0", x, padding=1), padding=1)
    return conv(s, "cls_meta.3", relu_conv(s, "cls_meta.0", x, padding=1))


def cross_entropy(logits, mask):
    return F.cross_entropy(logits, mask.long(), ignore_index=255)


# ---------------------------------------------------------------------------------------------------------------------
# The methods: outputs by name, and the loss terms in the official order


def baseline(s, stage, e, bins):
    _, query, _, supports = encoded(s, stage, e)
    logits = resize(aspp_head(s, query, sum(p for _, p, _ in supports), sum(p for *_, p in supports)), e.size)
    return {"logits": logits}, [cross_entropy(logits, e.query_mask)]


def pfenet(s, stage, e, bins):
    _, query, _, supports = encoded(s, stage, e)
    prototype, prior = (sum(values) / e.shot for values in zip(*(rest for _, *rest in supports)))
    pyramid, auxiliary = [], []
    for i, bin in enumerate(bins):
        cells = int(query.shape[2] * bin) if bin <= 1 else bin
        parts = [
            F.adaptive_avg_pool2d(query, cells),
            prototype.expand(-1, -1, cells, cells),
            resize(prior, (cells, cells)),
        ]
        x = relu_conv(s, f"init_merge.{i}.0", torch.cat(parts, 1))
        if pyramid:
            x = x + relu_conv(s, f"alpha_conv.{i - 1}.0", torch.cat([x, resize(pyramid[-1], (cells, cells))], 1))
        x = x + relu_conv(s, f"beta_conv.{i}.2", relu_conv(s, f"beta_conv.{i}.0", x, padding=1), padding=1)
        said = conv(s, f"inner_cls.{i}.3", relu_conv(s, f"inner_cls.{i}.0", x, padding=1))
        auxiliary.append(cross_entropy(resize(said, e.size), e.query_mask))
        pyramid.append(resize(x, query.shape[-2:]))
    x = relu_conv(s, "res1.0", torch.cat(pyramid, 1))
    x = x + relu_conv(s, "res2.2", relu_conv(s, "res2.0", x, padding=1), padding=1)
    logits = resize(conv(s, "cls.3", relu_conv(s, "cls.0", x, padding=1)), e.size)
    return {"logits": logits}, [cross_entropy(logits, e.query_mask), sum(auxiliary) / len(bins)]


def gram(x):
    x = x.flatten(2)
    return x @ x.transpose(1, 2) / (x.norm(dim=2)[:, :, None] * x.norm(dim=2)[:, None] + 1e-7)


def bam(s, stage, e, bins, training=False):
    """In training the episode's own base class says nothing against the object."""
    low, query, deep, supports = encoded(s, stage, e)
    ones = torch.ones(low.shape[1], low.shape[1], dtype=low.dtype).norm()
    distance = torch.stack([(gram(low) - gram(its)).flatten(1).norm(dim=1) / ones for its, *_ in supports], 1)
    weight = torch.ones_like(distance)
    if e.shot > 1:
        for b, its in enumerate(distance):
            order = its.argsort()
            scores = relu_conv(s, "kshot_rw.0", its[order].view(1, -1, 1, 1))
            weight[b, order] = conv(s, "kshot_rw.2", scores).flatten().softmax(0)
    prototype = sum(w.view(-1, 1, 1, 1) * p for w, (_, p, _) in zip(weight.T, supports))
    prior = sum(w.view(-1, 1, 1, 1) * p for w, (_, _, p) in zip(weight.T, supports))
    meta = aspp_head(s, query, prototype, prior)

    if "layer0p.0.weight" in s:
        _, _, deep = features(s, stage, e.query_image, suffix="p")
    pyramid = [deep]
    for i, cells in enumerate((1, 2, 3, 6)):
        name = f"learner_base.0.features.{i}"
        x = norm(s, f"{name}.2", conv(s, f"{name}.1", F.adaptive_avg_pool2d(deep, cells))).relu()
        pyramid.append(resize(x, deep.shape[-2:]))
    x = norm(s, "learner_base.1.1", conv(s, "learner_base.1.0", torch.cat(pyramid, 1), padding=1)).relu()
    base = conv(s, "learner_base.1.4", x)

    against = base.softmax(1)[:, 1:].clone()
    if training:
        for b, own in enumerate(e.base_class):
            against[b, own - 1] = 0
    adjust = (weight * distance).sum(1).view(-1, 1, 1, 1).expand(-1, 1, *meta.shape[-2:])
    background, object_ = (conv(s, "gram_merge", torch.cat([m, adjust], 1)) for m in meta.softmax(1).split(1, 1))
    background = conv(s, "cls_merge", torch.cat([background, against.sum(1, keepdim=True)], 1))
    final, meta, base = (resize(x, e.size) for x in (torch.cat([background, object_], 1), meta, base))
    losses = [cross_entropy(final, e.query_mask), cross_entropy(meta, e.query_mask), cross_entropy(base, e.base_mask)]
    return {"logits": final, "meta": meta, "base": base}, losses
