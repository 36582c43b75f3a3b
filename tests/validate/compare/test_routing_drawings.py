from moh_deploy.report.document import Text
from moh_deploy.report.html.routing_charts import page_map
from moh_deploy.validate.compare.routing_drawings import MOST_CLASSES, class_map, routing_sections
from moh_deploy.validate.compare.routing_statistics import ClassLoad, HeadLoad, RoutingStatistics


def test_number_of_cells_that_differ_is_told():
    load = HeadLoad("a", None, 1000, (500, 501), (500, 500))
    sections = routing_sections(RoutingStatistics((load,)), 0, has_routing=True)
    (section,) = sections
    (about, _) = section.blocks
    assert isinstance(about, Text)
    assert "1 cells are framed" in about.text


def test_of_many_classes_those_with_most_samples_are_shown():
    count = MOST_CLASSES + 5
    numbers = tuple(range(count - 1, -1, -1))
    load = ClassLoad("a", 0, tuple(map(str, numbers)), numbers, numbers, ((1,),) * count)
    shown = page_map(class_map(load))
    assert shown.content.left_out == 5
    assert [row.name for row in shown.blocks[0].rows] == [str(i) for i in range(5, count)]
    assert shown.blocks[0].rows[-1].cells[0].package.text == f"{100 / (count - 1):.0f}"
    assert class_map(ClassLoad("a", None, (), (), (), ())).rows == ()
