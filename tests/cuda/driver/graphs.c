/* Capture of a stream into a graph, and graphs that are launched. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

bool sim_capturing(void)
{
    for (Stream *s = world.streams; s; s = s->next)
        if (s->live && s->capture) {
            s->broken_capture = true;
            return true;
        }
    return false;
}

static Op *copy_ops(Op *from)
{
    Op *first = NULL, **end = &first;
    for (; from; from = from->next) {
        *end = malloc(sizeof **end);
        **end = *from;
        (*end)->next = NULL;
        end = &(*end)->next;
    }
    return first;
}

static void release_ops(Op *op)
{
    while (op) {
        Op *next = op->next;
        sim_release(op);
        op = next;
    }
}

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (!stream || stream->index == 0) LEAVE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (world.refuse_capture) LEAVE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (stream->capture) LEAVE(CUDA_ERROR_ILLEGAL_STATE);
    Graph *graph = calloc(1, sizeof *graph);
    *graph = (Graph){.live = true, .owner = sim_current(), .next = world.graphs};
    world.graphs = graph;
    stream->capture = graph;
    stream->broken_capture = false;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (!stream || !stream->capture) LEAVE(CUDA_ERROR_ILLEGAL_STATE);
    Graph *captured = stream->capture;
    stream->capture = NULL;
    *graph = NULL;
    if (stream->broken_capture) {
        captured->live = false;
        release_ops(captured->first);
        LEAVE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    *graph = captured;
    LEAVE(CUDA_SUCCESS);
}

static Graph *find_graph(CUgraph handle)
{
    for (Graph *g = world.graphs; g; g = g->next)
        if (g == handle && g->live) return g;
    sim_problem("unknown graph", "a graph was used that is not there or was destroyed");
    return NULL;
}

static GraphExec *find_executable(CUgraphExec handle)
{
    for (GraphExec *g = world.executables; g; g = g->next)
        if (g == handle && g->live) return g;
    sim_problem("unknown graph", "an executable graph was used that is not there or was destroyed");
    return NULL;
}

CUresult cuGraphInstantiate(CUgraphExec *handle, CUgraph graph_handle, unsigned long long flags)
{
    ENTER();
    Graph *graph = find_graph(graph_handle);
    if (!graph) LEAVE(CUDA_ERROR_INVALID_VALUE);
    GraphExec *executable = calloc(1, sizeof *executable);
    *executable = (GraphExec){.live = true, .owner = sim_current(), .next = world.executables};
    executable->first = copy_ops(graph->first);
    world.executables = executable;
    *handle = executable;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle)
{
    ENTER();
    GraphExec *executable = find_executable(handle);
    Stream *stream = sim_stream(stream_handle);
    if (!executable || !stream) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    for (Op *op = executable->first; op; op = op->next) {
        Op *one = malloc(sizeof *one);
        *one = *op;
        one->next = NULL;
        sim_append(stream, one);
    }
    LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphExecDestroy(CUgraphExec handle)
{
    ENTER();
    GraphExec *executable = find_executable(handle);
    if (!executable) LEAVE(CUDA_ERROR_INVALID_VALUE);
    executable->live = false;
    release_ops(executable->first);
    LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphDestroy(CUgraph handle)
{
    ENTER();
    Graph *graph = find_graph(handle);
    if (!graph) LEAVE(CUDA_ERROR_INVALID_VALUE);
    graph->live = false;
    release_ops(graph->first);
    LEAVE(CUDA_SUCCESS);
}
