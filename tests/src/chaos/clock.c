// A host whose clock is wrong: loaded into an agent, it shifts the time of day by the seconds in a file, which may change
// while the agent runs. What runs at a steady pace, the monotonic clock, is left alone, as it is on a real host. It
// follows into the processes that the agent starts.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char *library, *path;
static int file = -1;

__attribute__((constructor)) static void begin(void) {
    char *named = getenv("CHAOS_CLOCK"), *own = getenv("LD_PRELOAD");
    if (named && own) {
        path = strdup(named);
        library = strdup(own);
        file = open(path, O_RDONLY | O_CLOEXEC);
    }
}

static long shift(void) {
    char text[32];
    ssize_t count = file < 0 ? -1 : pread(file, text, sizeof text - 1, 0);
    if (count <= 0) return 0;
    text[count] = 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = syscall(SYS_gettimeofday, now, zone);
    if (result == 0 && now) now->tv_sec += shift();
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

int execvp(const char *program, char *const arguments[]) {
    int (*real)(const char *, char *const[]) = dlsym(RTLD_NEXT, "execvp");
    if (library) {
        setenv("LD_PRELOAD", library, 1);
        setenv("CHAOS_CLOCK", path, 1);
    }
    return real(program, arguments);
}
