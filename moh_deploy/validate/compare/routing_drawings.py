"""What a page draws of routing: loads of heads, and margins of choices."""

from collections.abc import Iterator

from moh_deploy.report import document as doc
from moh_deploy.validate.compare.routing_statistics import ClassLoad, HeadLoad, RoutingStatistics

MOST_CLASSES = 40
_NOT_COMPARED = "Routing was not compared: the reference holds no gates."
_NO_LAYERS = "No data: there is no MoH layer whose gates could be compared."
_ABOUT_CLASSES = (
    "For how many tokens of the samples of each class each head is on, in percent. The number"
    " beside a class is that of its samples."
)


def routing_sections(
    statistics: RoutingStatistics, index: int, *, has_routing: bool
) -> Iterator[doc.Section]:
    """Yield what is drawn of a comparison."""
    loads = statistics.head_loads
    if not has_routing:
        # A terminal's verdict says so.
        yield doc.Section("Load of heads", (doc.Text(_NOT_COMPARED, shown=doc.NOT_TERMINAL),))
    elif not loads:
        yield doc.Section("Load of heads", (doc.Text(_NO_LAYERS),), shown=doc.PAGE)
    else:
        rows = tuple(
            doc.LoadRow(load.path, load.tokens, load.got, load.reference, load.num_shared_heads)
            for load in loads
        )
        heat = doc.HeatMap("share of tokens, in percent", "layer", rows, f"loads-{index}")
        yield doc.Section(
            "Load of heads", (doc.Text(_about_loads(loads)), doc.HeatMaps((heat,))), shown=doc.PAGE
        )
    if statistics.class_loads:
        # A page opens the last map and folds the others, so that one has the name.
        *earlier, last = statistics.class_loads
        maps = (*map(class_map, earlier), class_map(last, f"classes-{index}"))
        about = doc.Text(_ABOUT_CLASSES)
        yield doc.Section("Load of heads by class", (about, doc.HeatMaps(maps)), shown=doc.PAGE)
    if statistics.margins:
        about = doc.Text(
            "Tokens by margin: how far the last chosen head is from the first that was not. Tokens"
            " that chose other heads than the reference hang below the line. Left of the dashed"
            f" line, at {statistics.margins[0].bound:.3g}, rounding explains that."
        )
        charts = doc.MarginCharts(statistics.margins)
        yield doc.Section("Margins of choices", (about, charts), shown=doc.PAGE)


def class_map(load: ClassLoad, id_: str = "") -> doc.HeatMap:
    """Return classes by heads of one layer; of many classes, those with the most samples."""
    # ImageNet has 1,000 classes. Those with most samples have the steadiest loads.
    most = sorted(range(len(load.classes)), key=lambda index: -load.samples[index])[:MOST_CLASSES]
    rows = tuple(
        doc.LoadRow(
            load.classes[index],
            load.tokens[index],
            load.on[index],  # There is no reference for classes: both sides are the same.
            load.on[index],
            load.num_shared_heads,
            f"{load.samples[index]}",
        )
        for index in sorted(most, key=lambda index: _in_order(load.classes[index]))
    )
    return doc.HeatMap(load.path, "class", rows, id_, len(load.classes) - len(rows))


def _in_order(name: str) -> tuple[int, str]:
    """Return the key by which 2 comes before 10."""
    return (int(name), "") if name.isdecimal() else (-1, name)


def _about_loads(loads: tuple[HeadLoad, ...]) -> str:
    pairs = (pair for load in loads for pair in zip(load.got, load.reference, strict=True))
    differs = sum(got != reference for got, reference in pairs)
    cells = "The package and the reference are the same in every cell."
    if differs:
        cells = (
            f"{differs} cells are framed: the upper number is the package's, the lower one the"
            " reference's. All others are the same in both."
        )
    return f"For how many of all tokens each head is on, in percent. {cells}"
