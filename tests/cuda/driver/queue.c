/* Queues of operations, the order they are done in, and races between them. */
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
