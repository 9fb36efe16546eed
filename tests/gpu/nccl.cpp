// NCCL for machines without a GPU, beside the driver of driver.cpp: the ranks are threads of one process, each with a device of its own, and memory
// is the host's. The last rank that comes to an operation does it for all, and sums in the order of ranks. It says nothing about speed.
//
// What would be a hang, or a wrong result, is an error here: ranks that call different operations, two ranks on one device, a context of another
// device, messages that are not of one size, or that nobody fetches. No wait is longer than 20 s.
//
// .ci/cuda links it as libnccl.so.2, over weak stand-ins for all other functions.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

extern "C" int cuCtxGetCurrent(void** context);

namespace {

enum { OK = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };

struct bf16 {
    unsigned short bits;
    operator float() const {
        const unsigned wide = (unsigned)bits << 16;
        float value;
        return memcpy(&value, &wide, 4), value;
    }
    bf16& operator=(float value) {
        unsigned wide;
        memcpy(&wide, &value, 4);
        return bits = (wide + 0x7fff + (wide >> 16 & 1)) >> 16, *this;
    }
};

struct Call {
    char what;
    const void* send;
    void* recv;
    size_t count;
    int type, op, root;
    bool fits(const Call& other) const {
        return what == other.what && count == other.count && type == other.type && op == other.op && root == other.root;
    }
};

struct Job {
    std::mutex mutex;
    std::condition_variable changed;
    int here = 0, result = OK;
    long meetings = 0;
    std::vector<Call> calls;
    std::vector<void*> contexts;
    std::map<std::pair<int, int>, std::deque<std::pair<int, std::string>>> messages; // (from, to): types and bytes
};

struct Comm {
    std::shared_ptr<Job> job;
    int rank;
    void* context;
};

std::mutex all_jobs;
std::map<std::string, std::shared_ptr<Job>> jobs;

struct Message {
    Comm* comm;
    const void* send;
    void* recv;
    size_t count;
    int type, peer;
};
thread_local int depth = 0;
thread_local std::vector<Message> group;

size_t bytes_of(int type) {
    switch (type) {
        case 1: return 1;
        case 3: case 7: return 4;
        case 4: case 8: return 8;
        case 6: case 9: return 2;
        default: return 0;
    }
}

template <class T, class Wide> void reduce(Job& job) {
    for (size_t i = 0; i < job.calls[0].count; ++i) {
        Wide result = (Wide)((const T*)job.calls[0].send)[i];
        for (size_t rank = 1; rank < job.calls.size(); ++rank) {
            const Wide other = (Wide)((const T*)job.calls[rank].send)[i];
            T rounded;
            rounded = (Wide)(job.calls[0].op == 0 ? result + other : result < other ? other : result);
            result = (Wide)rounded;
        }
        for (const Call& call : job.calls) ((T*)call.recv)[i] = result;
    }
}

int perform(Job& job) {
    const Call& first = job.calls[0];
    const size_t bytes = first.count * bytes_of(first.type);
    for (const Call& call : job.calls)
        if (!call.fits(first) || bytes == 0) return INVALID_USAGE;
    if (first.what == 'r' && first.op != 0 && first.op != 2) return INVALID_ARGUMENT; // sum, max
    if (first.root < 0 || first.root >= (int)job.calls.size()) return INVALID_ARGUMENT;
    if (first.what == 'b')
        for (const Call& call : job.calls) memcpy(call.recv, job.calls[first.root].send, bytes);
    if (first.what == 'g')
        for (const Call& call : job.calls)
            for (size_t rank = 0; rank < job.calls.size(); ++rank) memcpy((char*)call.recv + rank * bytes, job.calls[rank].send, bytes);
    if (first.what == 'r') switch (first.type) {
            case 1: reduce<unsigned char, int>(job); break;
            case 3: reduce<unsigned, unsigned>(job); break;
            case 4: reduce<long long, long long>(job); break;
            case 6: reduce<_Float16, float>(job); break;
            case 7: reduce<float, float>(job); break;
            case 8: reduce<double, double>(job); break;
            case 9: reduce<bf16, float>(job); break;
        }
    return OK;
}

bool is_current(const Comm* comm) {
    void* context;
    return cuCtxGetCurrent(&context) == 0 && context == comm->context;
}

template <class Is> bool wait(Job& job, std::unique_lock<std::mutex>& lock, Is is) {
    return job.changed.wait_for(lock, std::chrono::seconds(20), is);
}

// Every rank comes here with its call, and leaves when all are done.
int meet(Comm* comm, Call call) {
    if (!is_current(comm) || depth > 0) return INVALID_USAGE;
    Job& job = *comm->job;
    std::unique_lock<std::mutex> lock(job.mutex);
    const long meeting = job.meetings;
    job.calls[comm->rank] = call;
    if (++job.here == (int)job.calls.size()) {
        job.result = perform(job);
        job.here = 0;
        ++job.meetings;
        job.changed.notify_all();
    } else if (!wait(job, lock, [&] { return job.meetings != meeting; })) {
        return REMOTE_ERROR;
    }
    return job.result;
}

int message(Message message) {
    if (!is_current(message.comm) || depth == 0 || message.count == 0 || bytes_of(message.type) == 0) return INVALID_USAGE;
    if (message.peer < 0 || message.peer >= (int)message.comm->job->calls.size()) return INVALID_ARGUMENT;
    return group.push_back(message), OK;
}

} // namespace

extern "C" {
struct Id {
    char bytes[128];
};

int ncclGetUniqueId(Id* id) {
    std::lock_guard<std::mutex> lock(all_jobs);
    const int number = (int)jobs.size();
    for (int i = 0; i < 128; ++i) id->bytes[i] = (char)(i * 37 + number * 11 + (i == 5 ? number >> 8 : 0));
    jobs[std::string(id->bytes, 128)] = std::make_shared<Job>();
    return OK;
}

int ncclCommInitRank(Comm** comm, int ranks, Id id, int rank) {
    std::unique_lock<std::mutex> lock_jobs(all_jobs);
    auto found = jobs.find(std::string(id.bytes, 128));
    if (found == jobs.end() || ranks < 1 || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    std::shared_ptr<Job> job = found->second;
    lock_jobs.unlock();
    void* context;
    if (cuCtxGetCurrent(&context) != 0 || !context) return INVALID_USAGE;
    std::unique_lock<std::mutex> lock(job->mutex);
    if (job->contexts.empty()) job->contexts.resize(ranks), job->calls.resize(ranks);
    if ((int)job->contexts.size() != ranks || job->contexts[rank]) return INVALID_USAGE;
    job->contexts[rank] = context;
    if (++job->here == ranks) {
        job->here = 0;
        job->meetings = 1; // this one
        job->changed.notify_all();
    } else if (!wait(*job, lock, [&] { return job->meetings > 0; })) {
        return REMOTE_ERROR;
    }
    for (void* one : job->contexts)
        if (std::count(job->contexts.begin(), job->contexts.end(), one) > 1) return INVALID_USAGE; // two ranks on one device
    *comm = new Comm{job, rank, context};
    return OK;
}

int ncclCommAbort(Comm* comm) {
    std::unique_lock<std::mutex> lock(comm->job->mutex);
    bool is_left = false;
    for (auto& queue : comm->job->messages) is_left |= queue.first.second == comm->rank && !queue.second.empty();
    lock.unlock();
    delete comm;
    return is_left ? INVALID_USAGE : OK;
}

int ncclAllReduce(const void* send, void* recv, size_t count, int type, int op, Comm* comm, void*) {
    return meet(comm, {'r', send, recv, count, type, op, 0});
}
int ncclAllGather(const void* send, void* recv, size_t count, int type, Comm* comm, void*) {
    return meet(comm, {'g', send, recv, count, type, 0, 0});
}
int ncclBroadcast(const void* send, void* recv, size_t count, int type, int root, Comm* comm, void*) {
    return meet(comm, {'b', send, recv, count, type, 0, root});
}
int ncclSend(const void* send, size_t count, int type, int peer, Comm* comm, void*) {
    return message({comm, send, nullptr, count, type, peer});
}
int ncclRecv(void* recv, size_t count, int type, int peer, Comm* comm, void*) {
    return message({comm, nullptr, recv, count, type, peer});
}
int ncclGroupStart() { return ++depth, OK; }
int ncclGroupEnd() {
    if (depth == 0) return INVALID_USAGE;
    if (--depth > 0) return OK;
    std::vector<Message> all;
    all.swap(group);
    for (const Message& m : all)
        if (m.send) {
            std::lock_guard<std::mutex> lock(m.comm->job->mutex);
            m.comm->job->messages[{m.comm->rank, m.peer}].push_back({m.type, std::string((const char*)m.send, m.count * bytes_of(m.type))});
            m.comm->job->changed.notify_all();
        }
    for (const Message& m : all)
        if (m.recv) {
            std::unique_lock<std::mutex> lock(m.comm->job->mutex);
            auto& queue = m.comm->job->messages[{m.peer, m.comm->rank}];
            if (!wait(*m.comm->job, lock, [&] { return !queue.empty(); })) return REMOTE_ERROR;
            if (queue.front().first != m.type || queue.front().second.size() != m.count * bytes_of(m.type)) return INVALID_USAGE;
            memcpy(m.recv, queue.front().second.data(), queue.front().second.size());
            queue.pop_front();
        }
    return OK;
}
}
