/* Streams and events: queues of operations, the order they are done in, and races between them. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The default stream has index 0; how many operations each stream has ever had. */
static uint64_t counts[MAX_STREAMS];
static Stream default_stream = {.live = true};

uint64_t sim_random(void)
{
    world.seed ^= world.seed << 13;
    world.seed ^= world.seed >> 7;
    world.seed ^= world.seed << 17;
    return world.seed;
}

void sim_join(uint64_t *into, const uint64_t *from)
{
    for (int i = 0; i < MAX_STREAMS; i++)
        if (from[i] > into[i]) into[i] = from[i];
}

Op *sim_op(OpKind kind)
{
    Op *op = calloc(1, sizeof *op);
    op->kind = kind;
    return op;
}

void sim_add_range(Op *op, const void *start, size_t size, bool write)
{
    if (op->count < MAX_RANGES) op->ranges[op->count++] = (Range){(uintptr_t)start, size, write};
}

void sim_release_mark(Mark *mark)
{
    if (mark && --mark->references == 0) free(mark);
}

void sim_release(Op *op)
{
    sim_release_mark(op->mark);
    free(op->staged);
    free(op);
}

Stream *sim_stream(CUstream handle)
{
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
        sim_problem("default stream", "work was given to the default stream");
        return &default_stream;
    }
    for (Stream *s = world.streams; s; s = s->next)
        if (s == handle && s->live) return s;
    sim_problem("unknown stream", "a stream was used that is not there or was destroyed");
    return NULL;
}

/* ---- races: operations of two streams on one block, one of them writing, that nothing orders ---- */

static void check_race(Stream *stream, Range *range)
{
    Block *block = sim_find(range->start);
    if (!block || !block->live) return;
    if (block->writer >= 0 && block->writer != stream->index && stream->clock[block->writer] < block->written)
        sim_problem("race", "stream %d %s what stream %d is still writing, %zu bytes", stream->index,
                    range->write ? "writes" : "reads", block->writer, range->size);
    if (!range->write) {
        block->read[stream->index] = stream->clock[stream->index];
        return;
    }
    for (int i = 0; i < MAX_STREAMS; i++)
        if (i != stream->index && stream->clock[i] < block->read[i])
            sim_problem("race", "stream %d writes what stream %d is still reading, %zu bytes", stream->index, i,
                        range->size);
    block->writer = stream->index;
    block->written = stream->clock[stream->index];
}

/* ---- doing what was queued ---- */

/* Whether a range may be touched; what is not so is told once and left alone. */
static bool usable(Range *range)
{
    Block *block = sim_find(range->start);
    if (!block) return true; /* pageable memory of the host */
    if (!block->live) {
        sim_problem("use after free", "%zu bytes were used after they had been freed", range->size);
        return false;
    }
    if (range->start + range->size > block->start + block->size) {
        sim_problem("out of bounds", "%zu bytes were used where %zu are", range->size, block->size);
        return false;
    }
    return true;
}

static void fill(Op *op)
{
    Range *to = op->ranges;
    for (size_t i = 0; i < to->size; i += op->width) memcpy((char *)to->start + i, &op->value, op->width);
}

static void perform(Stream *stream, Op *op)
{
    bool fine = true;
    size_t bytes = 0;
    for (int i = 0; i < op->count; i++) {
        fine = usable(&op->ranges[i]) && fine;
        bytes += op->ranges[i].size;
    }
    world.clock_ns += 1000 + bytes;
    if (world.sticky || !fine) return;
    if (op->kind == COPY)
        memmove((void *)op->ranges[1].start, op->staged ? op->staged : (void *)op->ranges[0].start, op->ranges[1].size);
    else if (op->kind == FILL)
        fill(op);
    else if (op->kind == KERNEL) {
        /* It may be Python, which wants the interpreter's lock while others who hold that wait for ours. */
        stream->busy = true;
        sim_unlock();
        int failed = op->kernel(op->data);
        sim_lock();
        stream->busy = false;
        if (failed) world.sticky = CUDA_ERROR_LAUNCH_FAILED;
    }
}

/* Do the oldest operation of a stream, and first what it waits for in others. */
static void step(Stream *stream)
{
    while (stream->busy) {
        sim_unlock();
        usleep(50);
        sim_lock();
    }
    Op *op = stream->first;
    if (!op) return;
    if (op->kind == WAIT && !op->mark->done) {
        sim_finish_mark(op->mark);
        if (stream->first != op) return;
    }
    stream->first = op->next;
    if (!stream->first) stream->last = NULL;
    perform(stream, op);
    if (op->kind == RECORD) {
        op->mark->done = true;
        op->mark->time_ns = world.clock_ns;
    }
    sim_release(op);
}

void sim_finish_stream(Stream *stream)
{
    while (stream->first || stream->busy) step(stream);
    sim_join(world.host_clock, stream->clock);
}

void sim_finish_mark(Mark *mark)
{
    mark->references++;
    while (!mark->done && (mark->stream->first || mark->stream->busy)) step(mark->stream);
    sim_release_mark(mark);
}

void sim_finish_all(bool blocking_only)
{
    for (Stream *s = world.streams; s; s = s->next)
        if (!(blocking_only && s->flags & CU_STREAM_NON_BLOCKING)) sim_finish_stream(s);
}

void sim_some_progress(void)
{
    for (uint64_t n = sim_random() % 3; n; n--) {
        int number = 0, chosen;
        for (Stream *s = world.streams; s; s = s->next) number += s->first && !s->busy;
        if (!number) return;
        chosen = (int)(sim_random() % (uint64_t)number);
        for (Stream *s = world.streams; s; s = s->next)
            if (s->first && !s->busy && chosen-- == 0) {
                step(s);
                break;
            }
    }
}

/* Put an operation at the end of a stream's queue, as it is: a record takes its stream's time, a wait brings another's. */
void sim_append(Stream *stream, Op *op)
{
    sim_join(stream->clock, world.host_clock);
    stream->clock[stream->index] = ++counts[stream->index];
    if (op->kind == WAIT) sim_join(stream->clock, op->mark->clock);
    if (op->kind == RECORD) {
        op->mark->stream = stream;
        memcpy(op->mark->clock, stream->clock, sizeof stream->clock);
    }
    for (int i = 0; i < op->count; i++) check_race(stream, &op->ranges[i]);
    if (stream->last) stream->last->next = op;
    else stream->first = op;
    stream->last = op;
    if (world.mode == EAGER || stream == &default_stream) sim_finish_stream(stream);
}

CUresult sim_enqueue(Stream *stream, Op *op)
{
    if (!stream) {
        sim_release(op);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (stream == &default_stream) sim_finish_all(true);
    if (!stream->capture) {
        sim_append(stream, op);
        return CUDA_SUCCESS;
    }
    if (op->kind == RECORD || op->kind == WAIT) { /* no forks in our graphs */
        stream->broken_capture = true;
        sim_release(op);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture->last) stream->capture->last->next = op;
    else stream->capture->first = op;
    stream->capture->last = op;
    return CUDA_SUCCESS;
}

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
    if (!stream || stream == &default_stream) LEAVE(CUDA_ERROR_INVALID_HANDLE);
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
