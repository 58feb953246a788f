"""Validation and execution of graphs: every fault at once, every node once."""

import asyncio

import pytest

from imagen_nodes.headless.engine.execute import NodeError, Session, execute
from imagen_nodes.headless.engine.node_calls import ExecutionBlocker
from imagen_nodes.headless.engine.validate import check, validate
from imagen_nodes.headless.graph import Link, Node, WorkflowError

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


def test_a_name_that_the_node_says_itself_is_not_said_twice():
    node = Node("4", "S", "Sample", {})
    assert str(NodeError(node, ValueError("Sample: width: 61"))) == 'node 4 "Sample" (S): width: 61'


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


def test_a_session_runs_again_only_what_changed_and_keeps_only_what_is_in_use():
    session = Session(REGISTRY)

    def go(**nodes):
        CALLS.clear()
        graph = graph_of(**nodes)
        report = session.run(graph, validate(graph, REGISTRY))
        assert sorted(report.ran) == sorted(set(nodes) - set(report.cached))
        return ran()

    first = {"a": ("Number", {"value": 1}), "s": ("Add", {"a": "a:0", "b": 2})}
    shows = {"o": ("Show", {"value": "s:0"})}
    assert go(**first, **shows) == ["Number", "Add", "Show"]
    assert go(**first, **shows) == []
    changed = {"a": ("Number", {"value": 1}), "s": ("Add", {"a": "a:0", "b": 3})}
    assert go(**changed, **shows) == ["Add", "Show"]
    assert go(**first, **shows) == ["Add", "Show"]
    session.forget_outputs()
    assert go(**first, **shows) == ["Show"]


def test_nan_and_objects_are_never_taken_for_unchanged():
    kind = make("Clock", {"required": {}}, body=lambda: (1,))
    kind.IS_CHANGED = classmethod(lambda cls: float("nan"))
    registry = {**REGISTRY, "Clock": kind}
    graph = graph_of(a=("Clock", {}), o=("Show", {"value": "a:0"}))
    session = Session(registry)
    session.run(graph, ["o"])
    session.run(graph, ["o"])
    assert ran() == ["Clock", "Show"] * 2


def block(message):
    return make("Block", {"required": {"v": INT}}, body=lambda v: (blocked(v, message),))


def blocked(value, message):
    return ExecutionBlocker(message) if value == 2 else value


@pytest.mark.parametrize("message", [None, "not this one"])
def test_a_blocker_stops_what_it_reaches_and_nothing_else(message):
    registry = {**REGISTRY, "Block": block(message)}
    graph = graph_of(
        l=("List", {}),
        b=("Block", {"v": "l:0"}),
        s=("Add", {"a": "b:0", "b": 0}),
        o=("Show", {"value": "s:0"}),
    )
    report = Session(registry).run(graph, ["o"])
    assert report.shown["o"]["shown"] == [1, 3]
    assert report.blocked == ([] if message is None else ['node s "my Add" (Add): not this one'])
    whole = graph_of(
        l=("List", {}),
        b=("Block", {"v": "l:0"}),
        w=("Whole", {"v": "b:0"}),
        o=("Show", {"value": "w:0"}),
    )
    assert Session(registry).run(whole, ["o"]).shown == {}


def expand(count):
    """A chain of Add nodes that stands for count + 1 ones."""
    if count == 0:
        return {"result": (1,)}
    nodes = {
        "more": {"class_type": "Chain", "inputs": {"count": count - 1}},
        f"sum{count}": {"class_type": "Add", "inputs": {"a": [f"more{count}", 0], "b": 1}},
    }
    nodes[f"more{count}"] = nodes.pop("more")
    return {"result": ([f"sum{count}", 0],), "expand": nodes}


CHAIN = make("Chain", {"required": {"count": ("INT", {})}}, body=expand)


def test_a_node_may_put_others_in_its_place():
    graph = graph_of(c=("Chain", {"count": 3}), o=("Show", {"value": "c:0"}))
    report = Session({**REGISTRY, "Chain": CHAIN}).run(graph, ["o"])
    assert report.shown["o"]["shown"] == [4]
    assert ran().count("Add") == 3
    assert set(graph) == {"c", "o"}


def test_a_fault_inside_an_expansion_names_the_node_of_the_workflow():
    faults = {"x": {"class_type": "Fails", "inputs": {}}}
    circle = {"x": {"class_type": "Add", "inputs": {"a": ["x", 0], "b": 1}}}
    taken = {"o": {"class_type": "Number", "inputs": {"value": 1}}}
    for nodes, message in ((faults, "division"), (circle, "circle"), (taken, "ids are taken: o")):
        kind = make(
            "Grow", {"required": {}}, body=lambda n=nodes: {"result": (["x", 0],), "expand": n}
        )
        graph = graph_of(g=("Grow", {}), o=("Show", {"value": "g:0"}))
        with pytest.raises(NodeError, match=rf'node g "my Grow" \(Grow\): .*{message}'):
            Session({**REGISTRY, "Grow": kind}).run(graph, ["o"])


def sleeper(log):
    async def go(self, value):
        log.append(f"start {value}")
        await asyncio.sleep(0.01)
        log.append(f"end {value}")
        return (value,)

    return make("Sleep", {"required": {"value": INT}}, go=go)


def test_coroutines_run_side_by_side():
    log = []
    graph = graph_of(
        a=("Sleep", {"value": 1}),
        b=("Sleep", {"value": 2}),
        s=("Add", {"a": "a:0", "b": "b:0"}),
        o=("Show", {"value": "s:0"}),
    )
    report = Session({**REGISTRY, "Sleep": sleeper(log)}).run(graph, ["o"])
    assert report.shown["o"]["shown"] == [3]
    assert [entry.split()[0] for entry in log] == ["start", "start", "end", "end"]


def test_problems_carry_comfyuis_types_and_data():
    with pytest.raises(WorkflowError) as caught:
        validate(
            graph_of(
                a=("Add", {"a": 11, "b": "x"}),
                w=("Words", {"mode": "z"}),
                i=("Image", {"image": "w:0"}),
                c=("Checked", {"value": 7}),
                o1=("Show", {"value": "a:0"}),
                o2=("Show", {"value": "i:0"}),
                o3=("Show", {"value": "c:0"}),
                o4=("Show", {}),
            ),
            REGISTRY,
        )
    found = {(p.node, p.type): p.extra_info for p in caught.value.problems}
    assert set(found) == {
        ("a", "value_bigger_than_max"),
        ("a", "invalid_input_type"),
        ("w", "value_not_in_list"),
        ("i", "return_type_mismatch"),
        ("c", "custom_validation_failed"),
        ("o4", "required_input_missing"),
    }
    assert found["a", "value_bigger_than_max"] == {
        "input_name": "a",
        "input_config": ["INT", {"default": 0, "min": 0, "max": 10}],
        "received_value": 11,
    }
    assert found["i", "return_type_mismatch"]["linked_node"] == ["w", 0]


def test_outputs_whose_nodes_are_sound_can_run_beside_a_bad_one():
    graph = graph_of(
        n=("Number", {"value": 1}),
        a=("Add", {"a": "gone:0", "b": 1}),
        good=("Show", {"value": "n:0"}),
        bad=("Show", {"value": "a:0"}),
    )
    verdict = check(graph, REGISTRY)
    assert verdict.outputs == ["good"]
    assert [problem.node for problem in verdict.problems] == ["a"]
    assert check(graph, REGISTRY, ["bad"]).outputs == []
    assert check(graph, REGISTRY, []).problems[0].type == "prompt_no_outputs"
