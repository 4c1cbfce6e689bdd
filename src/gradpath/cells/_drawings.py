"""How a step of the LSTM and of the GRU is drawn."""

from gradpath.core.drawing import (
    BOTTOM,
    LANES,
    LEFT,
    MIDDLE,
    OUT,
    RIGHT,
    TOP,
    Drawing,
    DrawnGate,
    DrawnState,
    Edge,
    sends_back,
)

LSTM = Drawing(
    states=(
        DrawnState("C", True, (LEFT, TOP)),
        DrawnState("C", False, (RIGHT, TOP)),
        DrawnState("H", True, (LEFT, BOTTOM), height=2.1),  # what reads H_{t-1} ends at it, lane by lane
        DrawnState("H", False, (RIGHT, BOTTOM)),
    ),
    gates={
        "F": DrawnGate((2.6, MIDDLE), "forget_gate"),
        "I": DrawnGate((4.3, MIDDLE), "input_gate"),
        "G": DrawnGate((5.9, MIDDLE), "internal_node"),
        "O": DrawnGate((7.6, MIDDLE), "output_gate"),
    },
    operations=(("×", (2.6, TOP)), ("+", (5.1, TOP)), ("×", (5.1, 4.1)), ("×", (RIGHT, MIDDLE))),
    edges=(
        Edge("arrives", "highway", ((OUT, TOP), (RIGHT, TOP))),
        Edge("H", "total", ((OUT, BOTTOM), (RIGHT, BOTTOM))),
        Edge("H", "total", ((RIGHT, BOTTOM), (RIGHT, MIDDLE))),
        Edge("through_H", "total", ((RIGHT, MIDDLE), (RIGHT, TOP))),
        Edge("carrier", "highway", ((RIGHT, TOP), (5.1, TOP))),
        Edge("carrier", "highway", ((5.1, TOP), (2.6, TOP))),
        Edge("highway", "highway", ((2.6, TOP), (LEFT, TOP))),
        Edge("F", "forget_gate", ((2.6, TOP), (2.6, MIDDLE))),
        Edge("I", "input_gate", ((5.1, 4.1), (4.3, MIDDLE))),
        Edge("G", "internal_node", ((5.1, 4.1), (5.9, MIDDLE))),
        Edge("carrier", "highway", ((5.1, TOP), (5.1, 4.1))),
        Edge("O", "output_gate", ((RIGHT, MIDDLE), (7.6, MIDDLE))),
        sends_back("forget_gate", 2.6, LANES[0]),
        sends_back("input_gate", 4.3, LANES[1]),
        sends_back("internal_node", 5.9, LANES[2]),
        sends_back("output_gate", 7.6, LANES[3]),
        Edge("through_H_before", "total", ((LEFT, BOTTOM), (LEFT, TOP))),
    ),
)
GRU = Drawing(
    states=(DrawnState("H", True, (LEFT, TOP)), DrawnState("H", False, (RIGHT, TOP))),
    gates={
        "Z": DrawnGate((2.6, MIDDLE), "update_gate"),
        "R": DrawnGate((4.9, MIDDLE), "reset_gate"),
        "N": DrawnGate((7.2, MIDDLE), "candidate"),
    },
    operations=(("×", (2.6, TOP)), ("+", (7.2, TOP))),
    edges=(
        Edge("arrives", "highway", ((OUT, TOP), (RIGHT, TOP))),
        Edge("carrier", "highway", ((RIGHT, TOP), (7.2, TOP))),
        Edge("carrier", "highway", ((7.2, TOP), (2.6, TOP))),
        Edge("highway", "highway", ((2.6, TOP), (LEFT, TOP))),
        Edge("Z", "update_gate", ((2.6, TOP), (2.6, MIDDLE))),
        Edge("N", "candidate", ((7.2, TOP), (7.2, MIDDLE))),
        Edge("R", "reset_gate", ((7.2, MIDDLE), (4.9, MIDDLE))),
        sends_back("update_gate", 2.6, LANES[0]),
        sends_back("reset_gate", 4.9, LANES[1]),
        sends_back("candidate", 7.2, LANES[2]),
        Edge("through_H_before", "total", ((LEFT, LANES[2]), (LEFT, TOP))),
    ),
)
