/* A CUDA driver that is none: device memory is host memory, streams are queues, and asynchronous work is done as late as
 * the API allows. What a correct program never does is counted and told. For tests; see ../prepare.py. */
#pragma once
#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_STREAMS = 256, MAX_RANGES = 64 };

/* When queued work is done: at once; only when somebody waits for it; or a random part of it at every call. */
typedef enum { EAGER, LATE, SHUFFLE } Mode;

typedef struct Context {
    int retained;
    bool alive;
    struct Context *next;
} Context;

/* Memory somebody asked for. Freed blocks stay, filled with 0xDD, so that a later use is told from a wild address. */
typedef enum { DEVICE, MANAGED, HOST, REGISTERED } Kind;
typedef struct Block {
    uintptr_t start;
    size_t size;
    Kind kind;
    bool live;
    Context *owner;
    /* Who used it last, for races: stream and its count, as in vector clocks. */
    int writer;
    uint64_t written, read[MAX_STREAMS];
    struct Block *next;
} Block;

typedef struct {
    uintptr_t start;
    size_t size;
    bool write;
} Range;

/* One record of an event; the event points at its newest, waiting operations at the one they saw. */
typedef struct {
    int references;
    bool done;
    uint64_t time_ns, clock[MAX_STREAMS];
    struct CUstream_st *stream;
} Mark;

typedef enum { COPY, FILL, KERNEL, RECORD, WAIT } OpKind;
typedef int (*KernelFn)(void *data);
typedef struct Op {
    OpKind kind;
    Range ranges[MAX_RANGES];
    int count;
    uint64_t value;   /* of a fill */
    size_t width;     /* bytes of one element of a fill */
    KernelFn kernel;
    void *data;
    Mark *mark;
    void *staged;     /* copy of pageable memory, taken when the copy was asked for */
    struct Op *next;
} Op;

typedef struct CUstream_st {
    int index;
    unsigned flags;
    int priority;
    bool live, busy;
    Context *owner;
    Op *first, *last;
    uint64_t clock[MAX_STREAMS];
    struct CUgraph_st *capture;
    bool broken_capture;
    struct CUstream_st *next;
} Stream;

typedef struct CUevent_st {
    bool live;
    unsigned flags;
    int asked;        /* queries of the newest record that were answered "not ready" */
    Context *owner;
    Mark *mark;
    struct CUevent_st *next;
} Event;

typedef struct CUgraph_st {
    bool live;
    Context *owner;
    Op *first, *last;
    struct CUgraph_st *next;
} Graph;

typedef struct CUgraphExec_st {
    bool live;
    Context *owner;
    Op *first;
    struct CUgraphExec_st *next;
} GraphExec;

typedef struct {
    Mode mode;
    uint64_t seed, clock_ns, host_clock[MAX_STREAMS];
    int patience;     /* queries that are answered "not ready" before the work is done */
    bool integrated, refuse_capture, initialised;
    CUresult sticky;
    Context *contexts, *primary;
    Block *blocks;
    Stream *streams;
    Event *events;
    Graph *graphs;
    GraphExec *executables;
    int stream_count;
} World;
extern World world;

/* report.c: entry of every call (locks, counts, checks), problems, and what tests ask. */
CUresult sim_enter(const char *name, bool needs_context);
CUresult sim_leave(CUresult result);
void sim_lock(void);
void sim_unlock(void);
void sim_problem(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Every function begins with one of these. */
#define ENTER()                                          \
    do {                                                 \
        CUresult entered = sim_enter(__func__, true);    \
        if (entered) return sim_leave(entered);          \
    } while (0)
#define ENTER_WITHOUT_CONTEXT()                          \
    do {                                                 \
        CUresult entered = sim_enter(__func__, false);   \
        if (entered) return sim_leave(entered);          \
    } while (0)
#define LEAVE(result) return sim_leave(result)

/* contexts.c */
Context *sim_current(void);
void sim_count_leaks(Context *owner);

/* memory.c */
Block *sim_find(uintptr_t address);

/* queue.c */
Op *sim_op(OpKind kind);
void sim_add_range(Op *op, const void *start, size_t size, bool write);
CUresult sim_enqueue(Stream *stream, Op *op);
void sim_append(Stream *stream, Op *op);
Stream *sim_stream(CUstream handle);
void sim_finish_stream(Stream *stream);
void sim_finish_all(bool blocking_only);
void sim_finish_mark(Mark *mark);
void sim_some_progress(void);
uint64_t sim_random(void);
void sim_release(Op *op);
void sim_release_mark(Mark *mark);
void sim_join(uint64_t *into, const uint64_t *from);
bool sim_capturing(void);
