"""A service of gRPC and its client, without a compiler of protocols: messages are bytes.

grpc_peer.py serve ADDRESS          serves until it is killed
grpc_peer.py call ADDRESS           calls in every way and says `fine`
grpc_peer.py refused ADDRESS CODE   one call, which has to end with this code
"""

import sys
import threading
import time
from concurrent import futures

import grpc

cancelled = threading.Event()


def unary(request, context):
    context.set_trailing_metadata((("x-trailer", "behind"),))
    return request + b"!"


def slow(request, context):
    context.add_callback(cancelled.set)
    while context.is_active():
        time.sleep(0.01)
    return b""


def was_cancelled(request, context):
    return b"yes" if cancelled.wait(10) else b"no"


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this")


def download(request, context):
    for number in range(int(request)):
        yield b"%d" % number + b"x" * 10_000


def upload(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def both(requests, context):
    for request in requests:
        yield request.upper()


class Service(grpc.GenericRpcHandler):
    kinds = {
        "/test.Test/Unary": grpc.unary_unary_rpc_method_handler(unary),
        "/test.Test/Slow": grpc.unary_unary_rpc_method_handler(slow),
        "/test.Test/WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
        "/test.Test/Fail": grpc.unary_unary_rpc_method_handler(fail),
        "/test.Test/Download": grpc.unary_stream_rpc_method_handler(download),
        "/test.Test/Upload": grpc.stream_unary_rpc_method_handler(upload),
        "/test.Test/Both": grpc.stream_stream_rpc_method_handler(both),
    }

    def service(self, call):
        return self.kinds.get(call.method)


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def serve(address):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((Service(),))
    assert server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def call(channel):
    test = "/test.Test/"
    answer, outcome = channel.unary_unary(test + "Unary").with_call(b"hello", timeout=10)
    assert answer == b"hello!", answer
    assert ("x-trailer", "behind") in outcome.trailing_metadata(), outcome.trailing_metadata()

    answers = list(channel.unary_stream(test + "Download")(b"500", timeout=20))
    assert len(answers) == 500 and answers[499].startswith(b"499x"), len(answers)

    pieces = (b"y" * 10_000 for _ in range(500))
    assert channel.stream_unary(test + "Upload")(pieces, timeout=20) == b"5000000"

    # Each message is sent when the answer to the one before it is there.
    turn = threading.Semaphore(1)

    def messages():
        for number in range(20):
            turn.acquire()
            yield b"message %d" % number

    answered = 0
    for answer in channel.stream_stream(test + "Both")(messages(), timeout=20):
        assert answer == b"MESSAGE %d" % answered, answer
        answered += 1
        turn.release()
    assert answered == 20, answered

    fails = channel.unary_unary(test + "Fail")
    assert code_of(lambda: fails(b"", timeout=10)) == grpc.StatusCode.FAILED_PRECONDITION
    unknown = channel.unary_unary(test + "Unknown")
    assert code_of(lambda: unknown(b"", timeout=10)) == grpc.StatusCode.UNIMPLEMENTED

    slow = channel.unary_unary(test + "Slow")
    assert code_of(lambda: slow(b"", timeout=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert channel.unary_unary(test + "WasCancelled")(b"", timeout=20) == b"yes"
    print("fine")


def main():
    what, address = sys.argv[1:3]
    if what == "serve":
        return serve(address)
    with grpc.insecure_channel(address) as channel:
        if what == "call":
            return call(channel)
        unary = channel.unary_unary("/test.Test/Unary")
        code = code_of(lambda: unary(b"", timeout=10))
        assert code == grpc.StatusCode[sys.argv[3]], code
        print("fine")


main()
