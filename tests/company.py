"""Calls of `sample` in company, without an engine: their companion is taken to its end, round by round."""

from nodes.sample import sample_many


def rounds(calls, late=None):
    """What each round has finished, by the number of the call; `late` are further calls, by the round they come for."""
    left = {**(late or {}), 0: calls}
    under_way = sample_many(left.pop(0))
    finished, expected = [next(under_way)], len(calls)
    while left or sum(map(len, finished)) < expected:
        newcomers = left.pop(len(finished), [])
        expected += len(newcomers)
        finished.append(under_way.send(newcomers))
    under_way.close()
    return finished


def together(calls, late=None):
    """What calls give, in the order in which they come."""
    found = {number: result for finished in rounds(calls, late) for number, result in finished.items()}
    return [found[number] for number in range(len(found))]
