/* Entry of every call, what went wrong, and the functions that tests call. */
#include "sim.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

World world = {.mode = LATE, .patience = 2, .seed = 1};

typedef struct {
    const char *name;
    long calls;
    long last;        /* number of its last call among all calls */
    long fails_after; /* calls that still succeed; -1 where none is to fail */
    long times;       /* calls that fail then */
    CUresult result;
    bool sticky;
} Call;
typedef struct {
    char kind[32];
    long count;
    char first[160];
} Problem;

enum { MAX_CALLS = 256, MAX_PROBLEMS = 32, REPORT_BYTES = 65536 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Call calls[MAX_CALLS];
static Problem problems[MAX_PROBLEMS];
static long total;

void sim_lock(void) { pthread_mutex_lock(&mutex); }
void sim_unlock(void) { pthread_mutex_unlock(&mutex); }

void sim_problem(const char *kind, const char *format, ...)
{
    Problem *problem = problems;
    while (problem < problems + MAX_PROBLEMS - 1 && problem->count && strcmp(problem->kind, kind)) problem++;
    if (!problem->count++) {
        va_list arguments;
        snprintf(problem->kind, sizeof problem->kind, "%s", kind);
        va_start(arguments, format);
        vsnprintf(problem->first, sizeof problem->first, format, arguments);
        va_end(arguments);
    }
}

static Call *call_named(const char *name)
{
    Call *call = calls;
    while (call < calls + MAX_CALLS - 1 && call->name && strcmp(call->name, name)) call++;
    if (!call->name) *call = (Call){.name = strdup(name), .fails_after = -1};
    return call;
}

CUresult sim_enter(const char *name, bool needs_context)
{
    sim_lock();
    Call *call = call_named(name);
    call->calls++;
    call->last = ++total;
    if (call->fails_after > 0) call->fails_after--;
    else if (call->fails_after == 0) {
        if (--call->times <= 0) call->fails_after = -1;
        if (call->sticky) world.sticky = call->result;
        return call->result;
    }
    if (!world.initialised && strcmp(name, "cuInit") && strcmp(name, "cuDriverGetVersion"))
        return CUDA_ERROR_NOT_INITIALIZED;
    if (!needs_context) return CUDA_SUCCESS;
    Context *context = sim_current();
    if (!context) {
        sim_problem("no context", "%s was called where no context is current", name);
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (!context->alive) {
        sim_problem("dead context", "%s was called in a context that was destroyed", name);
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    if (world.sticky) return world.sticky;
    if (world.mode == SHUFFLE) sim_some_progress();
    return CUDA_SUCCESS;
}

CUresult sim_leave(CUresult result)
{
    sim_unlock();
    return result;
}

/* ---- what tests call, through ctypes ---- */

/* Forget counts and problems, and set how queued work is done. Objects that live stay. */
void sim_configure(int mode, uint64_t seed, int patience, int integrated)
{
    sim_lock();
    world.mode = (Mode)mode;
    world.seed = seed * 2654435761u + 1;
    world.patience = patience;
    world.integrated = integrated;
    world.refuse_capture = false;
    world.sticky = CUDA_SUCCESS;
    memset(problems, 0, sizeof problems);
    for (Call *call = calls; call->name; call++) {
        call->calls = 0;
        call->fails_after = -1;
    }
    sim_unlock();
}

/* Let the call `name` fail `times` times, after `after` more that succeed; with `sticky` every later call fails too. */
void sim_fail(const char *name, long after, long times, int result, int sticky)
{
    sim_lock();
    Call *call = call_named(name);
    call->fails_after = after;
    call->times = times;
    call->result = (CUresult)result;
    call->sticky = sticky;
    sim_unlock();
}

void sim_refuse_capture(int refuse) { world.refuse_capture = refuse; }

static size_t print(char *text, size_t used, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(text + used, REPORT_BYTES - used, format, arguments);
    va_end(arguments);
    return used + (size_t)more < REPORT_BYTES ? used + (size_t)more : REPORT_BYTES - 1;
}

/* Problems and calls since sim_configure, and what is alive, as JSON. The text is valid until the next call. */
const char *sim_report(void)
{
    static char text[REPORT_BYTES];
    long blocks = 0, streams = 0, events = 0, graphs = 0, executables = 0, retained = 0;
    size_t used = print(text, 0, "{\"problems\": {");
    sim_lock();
    for (Problem *p = problems; p->count; p++)
        used = print(text, used, "%s\"%s\": [%ld, \"%s\"]", p == problems ? "" : ", ", p->kind, p->count, p->first);
    used = print(text, used, "}, \"calls\": {");
    bool first = true;
    for (Call *call = calls; call->name; call++) {
        if (!call->calls) continue;
        used = print(text, used, "%s\"%s\": [%ld, %ld]", first ? "" : ", ", call->name, call->calls, call->last);
        first = false;
    }
    for (Block *b = world.blocks; b; b = b->next) blocks += b->live;
    for (Stream *s = world.streams; s; s = s->next) streams += s->live && s->index > 0;
    for (Event *e = world.events; e; e = e->next) events += e->live;
    for (Graph *g = world.graphs; g; g = g->next) graphs += g->live;
    for (GraphExec *g = world.executables; g; g = g->next) executables += g->live;
    if (world.primary) retained = world.primary->retained;
    print(text, used,
          "}, \"live\": {\"memory\": %ld, \"streams\": %ld, \"events\": %ld, \"graphs\": %ld, \"executables\": %ld, "
          "\"retained\": %ld}}",
          blocks, streams, events, graphs, executables, retained);
    sim_unlock();
    return text;
}
