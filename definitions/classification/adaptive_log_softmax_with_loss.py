"""Adaptive softmax: frequent classes are chosen among directly, rarer ones through their cluster, with narrower layers the rarer they are.

Grave et al., Efficient softmax approximation for GPUs, 2017 (torch.nn.AdaptiveLogSoftmaxWithLoss). Classes are in the order of how
frequent they are: those before the first cutoff are outcomes of the first choice, those between two cutoffs are a cluster.
"""

from losscomp.language import Choice, Hierarchy, axis, base, classes, cuts, each, layers, option, param, size

in_features = size("in_features")
n_classes = size("n_classes")
cutoffs = cuts("cutoffs", of=n_classes)
div_value = param("div_value", default=4.0, positive=True)
head_bias = option("head_bias", default=False)

shortlist_size = cutoffs[0]
n_clusters = cutoffs.count - 1
cluster = axis("cluster", extent=n_clusters).index()

adaptive_log_softmax_with_loss = Hierarchy(
    Choice(
        layers("head", in_features, bias=head_bias),
        classes(0, shortlist_size),
        each(cluster, Choice(
            layers("tail", in_features, in_features // div_value ** (cluster + 1)),
            classes(cutoffs[cluster], cutoffs[cluster + 1]),
        )),
    ),
    loss=base("cross_entropy.py").cross_entropy,
    like="torch.nn.AdaptiveLogSoftmaxWithLoss",
    module="AdaptiveLogSoftmaxWithLoss",
    forward="input_ target_",
    attributes={"shortlist_size": shortlist_size, "n_clusters": n_clusters, "head_size": shortlist_size + n_clusters},
    notes=(
        "in_features is at least 1 and div_value above 0, or that is the error; PyTorch makes layers of nothing, or divides by 0.",
        "It works under autocast; in PyTorch the types clash there.",
        "float16 and bfloat16 scores are computed with in float32: the log-probability of a class is rounded once.",
    ),
)
