/* Copyright: (c) 2026, lab.server contributors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 *
 * A simulation of NVML for tests: no hardware, no driver. It speaks the interface of libnvidia-ml.so.1 as far as
 * lab.server asks it, and serves what a file says (LAB_SIMULATED_NVML, or /etc/lab-simulated-nvml.conf), read anew
 * at each nvmlInit. A line is a record: its kind, then key=value, with _ for a space:
 *
 *   driver version=550.54.15 cuda=12040 [init=CODE] [delay=MICROSECONDS] [log=PATH]
 *   gpu uuid=GPU-1 name=NVIDIA_A100 pci=00000000:01:00.0 memory=BYTES [used= load= temperature= power= limit= ecc=]
 *       [remap_pending=1] [remap_failure=1] [mig=1] [handle=CODE] [fault=CODE]
 *   mig gpu=0 uuid=MIG-1 name=NVIDIA_A100_MIG_1g.5gb memory=BYTES [used=]
 *   process gpu=0 [mig=0] pid=PID memory=BYTES
 *
 * handle= is what asking for the GPU answers, fault= what everything asked of it does. mig= of a process counts the
 * instances of its GPU. Numbers are those of nvmlReturn_t. A number that is left out is "not supported".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MOST = 64, NONE = -1 };

typedef struct Device {
    char uuid[96], name[96], pci[32];
    long long memory, used, load, temperature, power, limit, ecc, pending, failure, mig, handle, fault;
    int gpu; /* that a MIG instance is a part of; NONE for a GPU */
    int number;
} Device;
typedef struct { int gpu, mig; unsigned pid; unsigned long long memory; } Process;

static Device devices[MOST];
static Process processes[MOST];
static int device_count, process_count, initialized;
static char driver[81], log_path[256];
static long long cuda, init_code, pause_us;

static const char *text(const char *line, const char *key, char *into, size_t size)
{
    char wanted[40];
    snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);
    into[0] = 0;
    if (!at)
        return NULL;
    at += strlen(wanted);
    size_t length = strcspn(at, " \n");
    if (length >= size)
        length = size - 1;
    memcpy(into, at, length);
    into[length] = 0;
    for (char *each = into; *each; each++)
        if (*each == '_')
            *each = ' ';
    return into;
}

static long long number(const char *line, const char *key, long long otherwise)
{
    char found[40];
    return text(line, key, found, sizeof found) ? atoll(found) : otherwise;
}

static void raw(const char *line, const char *key, char *into, size_t size)
{
    text(line, key, into, size);
    for (char *each = into; *each; each++)
        if (*each == ' ')
            *each = '_';
}

static void read_device(const char *line, int is_gpu)
{
    Device *one = &devices[device_count];
    memset(one, 0, sizeof *one);
    one->gpu = is_gpu ? NONE : (int)number(line, "gpu", 0);
    for (int i = 0; i < device_count; i++)
        one->number += devices[i].gpu == one->gpu;
    text(line, "uuid", one->uuid, sizeof one->uuid);
    text(line, "name", one->name, sizeof one->name);
    text(line, "pci", one->pci, sizeof one->pci);
    one->memory = number(line, "memory", 0);
    one->used = number(line, "used", 0);
    one->load = number(line, "load", NONE);
    one->temperature = number(line, "temperature", NONE);
    one->power = number(line, "power", NONE);
    one->limit = number(line, "limit", NONE);
    one->ecc = number(line, "ecc", NONE);
    one->pending = number(line, "remap_pending", NONE);
    one->failure = number(line, "remap_failure", NONE);
    one->mig = number(line, "mig", NONE);
    one->handle = number(line, "handle", 0);
    one->fault = number(line, "fault", 0);
    device_count++;
}

static void read_state(void)
{
    const char *path = getenv("LAB_SIMULATED_NVML");
    FILE *stream = fopen(path && *path ? path : "/etc/lab-simulated-nvml.conf", "r");
    char line[1024];
    device_count = process_count = 0;
    driver[0] = log_path[0] = 0;
    cuda = pause_us = 0;
    init_code = stream ? 0 : 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
    while (stream && fgets(line, sizeof line, stream) && device_count < MOST && process_count < MOST) {
        if (!strncmp(line, "driver ", 7)) {
            text(line, "version", driver, sizeof driver);
            raw(line, "log", log_path, sizeof log_path);
            cuda = number(line, "cuda", 0);
            init_code = number(line, "init", 0);
            pause_us = number(line, "delay", 0);
        } else if (!strncmp(line, "gpu ", 4) || !strncmp(line, "mig ", 4)) {
            read_device(line, line[0] == 'g');
        } else if (!strncmp(line, "process ", 8)) {
            Process *one = &processes[process_count++];
            one->gpu = (int)number(line, "gpu", 0);
            one->mig = (int)number(line, "mig", NONE);
            one->pid = (unsigned)number(line, "pid", 0);
            one->memory = (unsigned long long)number(line, "memory", 0);
        }
    }
    if (stream)
        fclose(stream);
}

static void told(const char *function, const char *of)
{
    if (pause_us)
        usleep((useconds_t)pause_us);
    if (!log_path[0])
        return;
    FILE *stream = fopen(log_path, "a");
    if (stream) {
        fprintf(stream, "%s %s\n", function, of);
        fclose(stream);
    }
}

static Device *find(int gpu, unsigned index)
{
    for (int i = 0; i < device_count; i++)
        if (devices[i].gpu == gpu && devices[i].number == (int)index)
            return &devices[i];
    return NULL;
}

/* What every function that is asked of a device does first. */
#define ASKED(device) \
    do { \
        if (!initialized) return UNINITIALIZED; \
        if (!(device)) return INVALID_ARGUMENT; \
        told(__func__, (device)->uuid); \
        if ((device)->fault) return (int)(device)->fault; \
    } while (0)

static int give(long long value, unsigned *into)
{
    if (value == NONE)
        return NOT_SUPPORTED;
    *into = (unsigned)value;
    return SUCCESS;
}

static int give_text(const char *value, char *into, unsigned size)
{
    if (strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(into, value);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    read_state();
    told(__func__, "-");
    initialized = !init_code;
    return (int)init_code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { initialized = 0; return SUCCESS; }

const char *nvmlErrorString(int code)
{
    static char said[64];
    snprintf(said, sizeof said, "Simulated error %d", code);
    return said;
}

int nvmlSystemGetDriverVersion(char *into, unsigned size)
{
    told(__func__, "-");
    return initialized ? give_text(driver, into, size) : UNINITIALIZED;
}

int nvmlSystemGetCudaDriverVersion_v2(int *into)
{
    told(__func__, "-");
    *into = (int)cuda;
    return initialized ? SUCCESS : UNINITIALIZED;
}
int nvmlSystemGetCudaDriverVersion(int *into) { return nvmlSystemGetCudaDriverVersion_v2(into); }

int nvmlDeviceGetCount_v2(unsigned *into)
{
    told(__func__, "-");
    *into = 0;
    for (int i = 0; i < device_count; i++)
        *into += devices[i].gpu == NONE;
    return initialized ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **into)
{
    if (!initialized)
        return UNINITIALIZED;
    *into = find(NONE, index);
    if (!*into)
        return INVALID_ARGUMENT;
    told(__func__, (*into)->uuid);
    return (int)(*into)->handle;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **into)
{
    ASKED(device);
    *into = find(device->number, index);
    return *into ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *into)
{
    ASKED(device);
    *into = device->mig == NONE ? 0 : 7;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending)
{
    ASKED(device);
    if (device->mig == NONE)
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->mig;
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device *device, char *into, unsigned size)
{
    ASKED(device);
    return give_text(device->uuid, into, size);
}

int nvmlDeviceGetName(Device *device, char *into, unsigned size)
{
    ASKED(device);
    return give_text(device->name, into, size);
}

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } PciInfo;
int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *into)
{
    ASKED(device);
    memset(into, 0, sizeof *into);
    strcpy(into->bus_id, device->pci);
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(Device *device, Memory *into)
{
    ASKED(device);
    into->total = (unsigned long long)device->memory;
    into->used = (unsigned long long)device->used;
    into->free = into->total - into->used;
    return SUCCESS;
}

typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Device *device, Utilization *into)
{
    ASKED(device);
    into->memory = 0;
    return give(device->gpu == NONE && device->mig != 1 ? device->load : NONE, &into->gpu);
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *into)
{
    ASKED(device);
    (void)sensor;
    return give(device->temperature, into);
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *into)
{
    ASKED(device);
    return give(device->power, into);
}

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *into)
{
    ASKED(device);
    return give(device->limit, into);
}

int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *into)
{
    ASKED(device);
    (void)kind, (void)counter;
    *into = (unsigned long long)device->ecc;
    return device->ecc == NONE ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned *correctable, unsigned *not, unsigned *pending, unsigned *failed)
{
    ASKED(device);
    if (device->pending == NONE && device->failure == NONE)
        return NOT_SUPPORTED;
    *correctable = *not = 0;
    *pending = device->pending == 1;
    *failed = device->failure == 1;
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } ProcessInfo;
static int running(Device *device, unsigned *count, ProcessInfo *into)
{
    unsigned found = 0;
    int gpu = device->gpu == NONE ? device->number : device->gpu;
    for (int i = 0; i < process_count; i++) {
        if (processes[i].gpu != gpu || processes[i].mig != (device->gpu == NONE ? NONE : device->number))
            continue;
        if (into && found < *count)
            into[found] = (ProcessInfo){processes[i].pid, processes[i].memory, 0, 0};
        found++;
    }
    int code = found > (into ? *count : 0) ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, ProcessInfo *into)
{
    if (!into)
        ASKED(device);
    return running(device, count, into);
}
int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, ProcessInfo *into)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, into);
}
