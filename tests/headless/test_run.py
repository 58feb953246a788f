"""Validation and execution of graphs: every fault at once, every node once."""

import pytest

from imagen_nodes.headless.execute import NodeError, execute
from imagen_nodes.headless.graph import Link, Node, WorkflowError
from imagen_nodes.headless.validate import validate

CALLS = []


def make(kind, inputs, outputs=("INT",), body=None, **attributes):
    """A V1 node class that records its calls."""

    def go(self, **arguments):
        CALLS.append((kind, arguments))
        return (
            body(**arguments)
            if body
            else (sum(v for v in arguments.values() if isinstance(v, int)),)
        )

    members = {
        "INPUT_TYPES": classmethod(lambda cls: inputs),
        "RETURN_TYPES": outputs,
        "FUNCTION": "go",
        "go": go,
        **attributes,
    }
    return type(kind, (), members)


INT = ("INT", {"default": 0, "min": 0, "max": 10})
REGISTRY = {
    "Number": make("Number", {"required": {"value": INT}}, body=lambda value: (value,)),
    "Add": make("Add", {"required": {"a": INT, "b": INT}}),
    "Words": make(
        "Words", {"required": {"mode": (["x", "y"],)}}, ("STRING",), lambda mode: (mode,)
    ),
    "Image": make("Image", {"required": {"image": ("IMAGE",)}}, ("IMAGE",)),
    "Show": make(
        "Show",
        {"required": {"value": ("*",)}},
        (),
        lambda value: {"ui": {"shown": [value]}},
        OUTPUT_NODE=True,
    ),
    "List": make("List", {"required": {}}, ("INT",), lambda: ([1, 2, 3],), OUTPUT_IS_LIST=(True,)),
    "Pair": make("Pair", {"required": {}}, ("INT",), lambda: ([10, 20],), OUTPUT_IS_LIST=(True,)),
    "Whole": make(
        "Whole", {"required": {"v": INT}}, ("INT",), lambda v: (len(v),), INPUT_IS_LIST=True
    ),
    "Fails": make("Fails", {"required": {}}, ("INT",), lambda: 1 / 0),
    "Lazy": make(
        "Lazy",
        {"required": {"pick": INT, "a": ("INT", {"lazy": True}), "b": ("INT", {"lazy": True})}},
        ("INT",),
        lambda pick, a, b: (a if pick == 0 else b,),
        check_lazy_status=lambda self, pick, a, b: ["a"] if pick == 0 else ["b"],
    ),
    "Hidden": make(
        "Hidden",
        {"required": {}, "hidden": {"me": "UNIQUE_ID", "p": "PROMPT", "x": "EXTRA_PNGINFO"}},
        ("STRING",),
        lambda me, p, x: (f"{me} {sorted(p)} {x}",),
    ),
    "Checked": make(
        "Checked",
        {"required": {"value": INT}},
        body=lambda value: (value,),
        VALIDATE_INPUTS=classmethod(lambda cls, value: True if value < 5 else "too much"),
    ),
}


@pytest.fixture(autouse=True)
def fresh():
    CALLS.clear()


def graph_of(**nodes):
    """Nodes by id: (class, inputs); an input "id:slot" is a link."""
    graph = {}
    for node_id, (kind, inputs) in nodes.items():
        parsed = {
            name: Link(*((v.split(":")[0], int(v.split(":")[1]))))
            if isinstance(v, str) and ":" in v
            else v
            for name, v in inputs.items()
        }
        graph[node_id] = Node(node_id, kind, f"my {kind}", parsed)
    return graph


def shown(**nodes):
    return {key: value["shown"] for key, value in execute(graph_of(**nodes), REGISTRY).items()}


def ran():
    return [kind for kind, _ in CALLS]


def test_values_flow_and_only_what_an_output_needs_runs():
    nodes = {
        "n": ("Number", {"value": 3}),
        "unused": ("Number", {"value": 9}),
        "sum": ("Add", {"a": "n:0", "b": 4}),
        "out": ("Show", {"value": "sum:0"}),
    }
    assert shown(**nodes) == {"out": [7]}
    assert ran() == ["Number", "Add", "Show"]


def test_equal_nodes_run_once_and_different_ones_each():
    nodes = {
        "a": ("Number", {"value": 2}),
        "b": ("Number", {"value": 2}),
        "c": ("Number", {"value": 5}),
        "sum": ("Add", {"a": "a:0", "b": "b:0"}),
        "more": ("Add", {"a": "sum:0", "b": "c:0"}),
        "out": ("Show", {"value": "more:0"}),
        "again": ("Show", {"value": "more:0"}),
    }
    assert shown(**nodes) == {"out": [9], "again": [9]}
    assert ran().count("Number") == 2


def test_lists_are_mapped_and_short_ones_repeat_their_last():
    nodes = {
        "l": ("List", {}),
        "p": ("Pair", {}),
        "sum": ("Add", {"a": "l:0", "b": "p:0"}),
        "all": ("Whole", {"v": "sum:0"}),
        "out": ("Show", {"value": "sum:0"}),
        "count": ("Show", {"value": "all:0"}),
    }
    assert shown(**nodes) == {"out": [11, 22, 23], "count": [3]}


def test_lazy_inputs_run_only_when_asked_for():
    nodes = {
        "a": ("Number", {"value": 1}),
        "b": ("Number", {"value": 2}),
        "lazy": ("Lazy", {"pick": 1, "a": "a:0", "b": "b:0"}),
        "out": ("Show", {"value": "lazy:0"}),
    }
    assert shown(**nodes) == {"out": [2]}
    assert ran().count("Number") == 1


def test_hidden_inputs_tell_a_node_where_it_is():
    graph = graph_of(h=("Hidden", {}), out=("Show", {"value": "h:0"}))
    result = execute(graph, REGISTRY, {"nodes": []})
    assert result["out"]["shown"] == ["h ['h', 'out'] {'workflow': {'nodes': []}}"]


def test_a_changed_source_is_not_taken_from_the_cache():
    answers = iter(["first", "second"])
    kind = make("Clock", {"required": {}}, body=lambda: (1,))
    kind.IS_CHANGED = classmethod(lambda cls: next(answers))
    registry = {**REGISTRY, "Clock": kind}
    graph = graph_of(
        a=("Clock", {}),
        b=("Clock", {}),
        s=("Add", {"a": "a:0", "b": "b:0"}),
        o=("Show", {"value": "s:0"}),
    )
    execute(graph, registry)
    assert ran().count("Clock") == 2


def test_a_failing_node_is_named():
    with pytest.raises(NodeError, match=r'node f "my Fails" \(Fails\): division by zero'):
        shown(f=("Fails", {}), out=("Show", {"value": "f:0"}))


def problems(**nodes):
    with pytest.raises(WorkflowError) as caught:
        validate(graph_of(**nodes), REGISTRY)
    return [problem.line for problem in caught.value.problems]


def test_every_fault_is_reported_at_once_with_node_title_and_input():
    found = problems(
        a=("Add", {"a": 11, "b": -1}),
        b=("Add", {"a": "x", "b": "gone:0"}),
        w=("Words", {"mode": "z"}),
        i=("Image", {"image": "w:0"}),
        m=("Add", {"a": "w:7"}),
        c=("Checked", {"value": 7}),
        u=("Unknown", {}),
        o1=("Show", {"value": "a:0"}),
        o2=("Show", {"value": "b:0"}),
        o3=("Show", {"value": "i:0"}),
        o4=("Show", {"value": "m:0"}),
        o5=("Show", {"value": "c:0"}),
    )
    text = "\n".join(found)
    for expected in (
        'node u "my Unknown" (Unknown): this node type is not known',
        'node a "my Add" (Add), input a: expected at most 10, got 11',
        'node a "my Add" (Add), input b: expected at least 0, got -1',
        "node b \"my Add\" (Add), input a: expected a whole number, got 'x'",
        "input b: is linked to node gone, which is not in the workflow",
        "node w \"my Words\" (Words), input mode: expected one of x, y, got 'z'",
        'node i "my Image" (Image), input image: expected IMAGE, got STRING from node w',
        'node m "my Add" (Add), input a: is linked to output 7 of node w',
        'node m "my Add" (Add), input b: missing',
        'node c "my Checked" (Checked), input value: too much',
    ):
        assert expected in text
    assert len(found) == 10
    assert CALLS == []


def test_circles_are_named():
    found = problems(
        a=("Add", {"a": "b:0", "b": 1}),
        b=("Add", {"a": "a:0", "b": 1}),
        c=("Add", {"a": "b:0", "b": 1}),
        o=("Show", {"value": "c:0"}),
    )
    assert found == ['links run in a circle through node a "my Add" (Add), node b "my Add" (Add)']


def test_a_graph_without_an_output_is_refused():
    assert "no output node" in problems(n=("Number", {"value": 1}))[0]


def test_nodes_that_no_output_needs_are_not_checked():
    graph = graph_of(
        n=("Number", {"value": 99}), m=("Number", {"value": 1}), o=("Show", {"value": "m:0"})
    )
    assert validate(graph, REGISTRY) == ["o"]


def test_constants_are_converted_to_their_declared_types():
    graph = graph_of(n=("Number", {"value": "4"}), o=("Show", {"value": "n:0"}))
    assert execute(graph, REGISTRY)["o"]["shown"] == [4]
