/* Streams and events as the API has them; what they hold is done in queue.c. */
#include "sim.h"

#include <stdlib.h>

/* ---- streams ---- */

static CUresult create(CUstream *handle, unsigned flags, int priority)
{
    bool taken[MAX_STREAMS] = {true};
    for (Stream *s = world.streams; s; s = s->next)
        if (s->live) taken[s->index] = true;
    int index = 1;
    while (index < MAX_STREAMS && taken[index]) index++;
    if (index == MAX_STREAMS) return CUDA_ERROR_OUT_OF_MEMORY;
    Stream *stream = calloc(1, sizeof *stream);
    *stream = (Stream){.index = index, .flags = flags, .priority = priority, .live = true, .owner = sim_current()};
    stream->next = world.streams;
    world.streams = stream;
    *handle = stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
    ENTER();
    LEAVE(create(stream, flags, 0));
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
    ENTER();
    LEAVE(create(stream, flags, priority));
}

/* Of the attributes, priority alone. */
CUresult cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute, const CUstreamAttrValue *value)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (!stream || attribute != CU_LAUNCH_ATTRIBUTE_PRIORITY) LEAVE(CUDA_ERROR_INVALID_VALUE);
    stream->priority = value->priority;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamGetPriority(CUstream handle, int *priority)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (stream) *priority = stream->priority;
    LEAVE(stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE);
}

/* What was queued is still done, as the API promises. */
CUresult cuStreamDestroy(CUstream handle)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (!stream || stream->index == 0) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (stream->first) sim_problem("busy stream destroyed", "a stream was destroyed that still had work");
    sim_finish_stream(stream);
    stream->live = false;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamSynchronize(CUstream handle)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (!stream) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture) {
        sim_problem("capture violation", "a stream was waited for during its capture");
        stream->broken_capture = true;
        LEAVE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    sim_finish_stream(stream);
    LEAVE(world.sticky);
}

CUresult cuStreamQuery(CUstream handle)
{
    ENTER();
    Stream *stream = sim_stream(handle);
    if (!stream) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (!stream->first && !stream->busy) sim_join(world.host_clock, stream->clock);
    LEAVE(stream->first || stream->busy ? CUDA_ERROR_NOT_READY : world.sticky);
}

/* A kernel for tests: `kernel` is done where the stream has come to it, and uses the ranges that are named. */
CUresult sim_launch(CUstream handle, int count, const uintptr_t *starts, const size_t *sizes, const unsigned char *writes,
                    KernelFn kernel, void *data)
{
    ENTER();
    Op *op = sim_op(KERNEL);
    op->kernel = kernel;
    op->data = data;
    for (int i = 0; i < count; i++) sim_add_range(op, (void *)starts[i], sizes[i], writes[i]);
    LEAVE(sim_enqueue(sim_stream(handle), op));
}

/* ---- events ---- */

static Event *find_event(CUevent handle)
{
    for (Event *e = world.events; e; e = e->next)
        if (e == handle && e->live) return e;
    sim_problem("unknown event", "an event was used that is not there or was destroyed");
    return NULL;
}

CUresult cuEventCreate(CUevent *handle, unsigned int flags)
{
    ENTER();
    Event *event = calloc(1, sizeof *event);
    *event = (Event){.live = true, .flags = flags, .owner = sim_current(), .next = world.events};
    world.events = event;
    *handle = event;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuEventDestroy(CUevent handle)
{
    ENTER();
    Event *event = find_event(handle);
    if (!event) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    event->live = false;
    sim_release_mark(event->mark);
    event->mark = NULL;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle)
{
    ENTER();
    Event *event = find_event(handle);
    Stream *stream = sim_stream(stream_handle);
    if (!event || !stream) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    Op *op = sim_op(RECORD);
    op->mark = calloc(1, sizeof *op->mark);
    op->mark->references = 2;
    sim_release_mark(event->mark);
    event->mark = op->mark;
    event->asked = 0;
    LEAVE(sim_enqueue(stream, op));
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned int flags)
{
    ENTER();
    Event *event = find_event(handle);
    Stream *stream = sim_stream(stream_handle);
    if (!event || !stream) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (!event->mark) LEAVE(CUDA_SUCCESS);
    Op *op = sim_op(WAIT);
    op->mark = event->mark;
    op->mark->references++;
    LEAVE(sim_enqueue(stream, op));
}

CUresult cuEventSynchronize(CUevent handle)
{
    ENTER();
    Event *event = find_event(handle);
    if (!event) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (event->mark) {
        sim_finish_mark(event->mark);
        sim_join(world.host_clock, event->mark->clock);
    }
    LEAVE(world.sticky);
}

CUresult cuEventQuery(CUevent handle)
{
    ENTER();
    Event *event = find_event(handle);
    if (!event) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (event->mark && !event->mark->done) {
        if (event->asked++ < world.patience || event->mark->stream->busy) LEAVE(CUDA_ERROR_NOT_READY);
        sim_finish_mark(event->mark);
    }
    if (event->mark) sim_join(world.host_clock, event->mark->clock);
    LEAVE(world.sticky);
}

CUresult cuEventElapsedTime(float *ms, CUevent start_handle, CUevent end_handle)
{
    ENTER();
    Event *start = find_event(start_handle), *end = find_event(end_handle);
    if (!start || !end || !start->mark || !end->mark) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (!start->mark->done || !end->mark->done) LEAVE(CUDA_ERROR_NOT_READY);
    *ms = (float)(end->mark->time_ns - start->mark->time_ns) * 1e-6f;
    LEAVE(CUDA_SUCCESS);
}
