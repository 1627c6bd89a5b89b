/* The least that any SSH relay spends: bytes from one connection to another, and a session with its login, in C on OpenSSL.
 *
 * It is a yardstick: the packets have the sizes and the cryptography of SSH (RFC 4253, RFC 5647), there is no protocol behind them. The
 * peers are processes of their own, so the CPU time that is printed is the relay's alone.
 *
 *   floor bulk BYTES PACKET READ   one stream of BYTES in packets of PACKET bytes of data; READ bytes at most a recv
 *   floor sessions COUNT [mlkem]   COUNT sessions one after another, with X25519; `mlkem`: and ML-KEM-768, where OpenSSL has it
 *
 * Prints one line of JSON: {"count": bytes or sessions, "cpu_seconds": ..., "seconds": ..., "calls": system calls for input and output}.
 * Exits with 1 if a peer or OpenSSL fails, 2 for wrong words, 3 without ML-KEM-768.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/opensslv.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    KEY = 16,           /* aes128-gcm@openssh.com */
    IV = 12,
    TAG = 16,
    LENGTH = 4,         /* of the packet, authenticated and not encrypted (RFC 5647 section 7.3) */
    BLOCK = 16,
    DATA_HEAD = 9,      /* SSH_MSG_CHANNEL_DATA: number, recipient channel, length */
    PADDING_LEAST = 4,
    ROOM = 4 << 20,
    MOST_SECONDS = 300  /* each process ends itself after that: nothing here waits for ever */
};

static unsigned long calls;

static void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void need(int good, const char *what) {
    if (!good) {
        errno = errno ? errno : EPROTO;
        fail(what);
    }
}

static double now(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* -- sockets ------------------------------------------------------------------------------------------------------------------------- */

static void send_all(int fd, const unsigned char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        calls++;
        if (sent < 0)
            fail("send");
        data += sent;
        size -= (size_t)sent;
    }
}

/* Receives exactly `size` bytes: the peers know what comes. */
static void recv_all(int fd, unsigned char *data, size_t size) {
    while (size) {
        ssize_t got = recv(fd, data, size, 0);
        calls++;
        need(got > 0, "recv");
        data += got;
        size -= (size_t)got;
    }
}

static int no_delay(int fd) {
    int on = 1;
    need(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
    return fd;
}

static int listening(struct sockaddr_in *at) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = sizeof *at;
    memset(at, 0, sizeof *at);
    at->sin_family = AF_INET;
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    need(fd >= 0 && bind(fd, (struct sockaddr *)at, size) == 0 && listen(fd, 16) == 0, "listen");
    need(getsockname(fd, (struct sockaddr *)at, &size) == 0, "getsockname");
    return fd;
}

static int connected(const struct sockaddr_in *to) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(fd >= 0 && connect(fd, (const struct sockaddr *)to, sizeof *to) == 0, "connect");
    return no_delay(fd);
}

static int accepted(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    need(fd >= 0, "accept");
    return no_delay(fd);
}

static pid_t peer(void) {
    pid_t pid = fork();
    need(pid >= 0, "fork");
    if (pid == 0)
        alarm(MOST_SECONDS);
    return pid;
}

static void ended(pid_t pid) {
    int status;
    need(waitpid(pid, &status, 0) == pid && status == 0, "a peer failed");
}

/* -- packets (RFC 4253 section 6, RFC 5647) ------------------------------------------------------------------------------------------- */

struct direction {
    EVP_CIPHER_CTX *context;
    unsigned char iv[IV];
};

static void prepare(struct direction *one, const unsigned char key[KEY], const unsigned char iv[IV], int seals) {
    if (!one->context)
        one->context = EVP_CIPHER_CTX_new();
    memcpy(one->iv, iv, IV);
    need(EVP_CipherInit_ex(one->context, EVP_aes_128_gcm(), NULL, key, iv, seals), "the cipher");
}

/* The invocation counter is the last 8 bytes, big-endian (RFC 5647 section 7.1). */
static void next_iv(struct direction *one) {
    for (int at = IV - 1; at >= IV - 8 && ++one->iv[at] == 0; at--)
        ;
}

static uint32_t read32(const unsigned char *at) { return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]; }

static void write32(unsigned char *at, uint32_t value) {
    at[0] = (unsigned char)(value >> 24);
    at[1] = (unsigned char)(value >> 16);
    at[2] = (unsigned char)(value >> 8);
    at[3] = (unsigned char)value;
}

/* The whole packet that carries `payload` bytes: length, padding length, payload, padding, tag. */
static size_t packet_size(size_t payload) {
    size_t padding = BLOCK - (1 + payload) % BLOCK;
    if (padding < PADDING_LEAST)
        padding += BLOCK;
    return LENGTH + 1 + payload + padding + TAG;
}

/* Seals in place: the payload is at packet + LENGTH + 1 already. Returns the packet's size. */
static size_t seal(struct direction *one, unsigned char *packet, size_t payload) {
    size_t size = packet_size(payload), body = size - LENGTH - TAG;
    int done;
    write32(packet, (uint32_t)body);
    packet[LENGTH] = (unsigned char)(body - 1 - payload);
    need(EVP_EncryptInit_ex(one->context, NULL, NULL, NULL, one->iv) && EVP_EncryptUpdate(one->context, NULL, &done, packet, LENGTH) &&
             EVP_EncryptUpdate(one->context, packet + LENGTH, &done, packet + LENGTH, (int)body) &&
             EVP_EncryptFinal_ex(one->context, packet + LENGTH + done, &done) &&
             EVP_CIPHER_CTX_ctrl(one->context, EVP_CTRL_AEAD_GET_TAG, TAG, packet + LENGTH + body),
         "seal");
    next_iv(one);
    return size;
}

/* Opens in place. Returns the size of the payload, which begins at packet + LENGTH + 1. */
static size_t unseal(struct direction *one, unsigned char *packet, size_t size) {
    size_t body = size - LENGTH - TAG;
    int done;
    need(EVP_DecryptInit_ex(one->context, NULL, NULL, NULL, one->iv) && EVP_DecryptUpdate(one->context, NULL, &done, packet, LENGTH) &&
             EVP_DecryptUpdate(one->context, packet + LENGTH, &done, packet + LENGTH, (int)body) &&
             EVP_CIPHER_CTX_ctrl(one->context, EVP_CTRL_AEAD_SET_TAG, TAG, packet + LENGTH + body) &&
             EVP_DecryptFinal_ex(one->context, packet + LENGTH + done, &done) == 1,
         "open");
    next_iv(one);
    return body - 1 - packet[LENGTH];
}

/* -- bulk ---------------------------------------------------------------------------------------------------------------------------- */

static const unsigned char HOST_SIDE[KEY] = "key of the host", CLIENT_SIDE[KEY] = "key of a client", FIRST_IV[IV] = "first iv";

static void source(const struct sockaddr_in *to, uint64_t bytes, size_t data) {
    struct direction out = {0};
    size_t whole = packet_size(DATA_HEAD + data), at_once = (256 << 10) / whole + 1;
    unsigned char *room = calloc(at_once, whole);
    int fd = connected(to);
    prepare(&out, HOST_SIDE, FIRST_IV, 1);
    while (bytes) {
        size_t filled = 0;
        for (size_t at = 0; at < at_once && bytes; at++) {
            size_t take = bytes < data ? (size_t)bytes : data;
            unsigned char *payload = room + filled + LENGTH + 1;
            payload[0] = 94;
            write32(payload + 5, (uint32_t)take);
            filled += seal(&out, room + filled, DATA_HEAD + take);
            bytes -= take;
        }
        send_all(fd, room, filled);
    }
    close(fd);
}

/* Reads and throws away, as fast as it comes. */
static void sink(int listener) {
    unsigned char *room = malloc(ROOM);
    int fd = accepted(listener);
    ssize_t got;
    while ((got = recv(fd, room, ROOM, 0)) > 0)
        ;
    need(got == 0, "the sink");
}

static void bulk(uint64_t bytes, size_t data, size_t most) {
    struct sockaddr_in front, back;
    int in = listening(&front), out = listening(&back), from, to;
    struct direction opens = {0}, seals = {0};
    unsigned char *room = malloc(ROOM);
    size_t have = 0;
    uint64_t carried = 0;
    double cpu, wall;
    pid_t first, second;
    if ((first = peer()) == 0) {
        sink(out);
        _exit(0);
    }
    if ((second = peer()) == 0) {
        source(&front, bytes, data);
        _exit(0);
    }
    from = accepted(in);
    to = connected(&back);
    prepare(&opens, HOST_SIDE, FIRST_IV, 0);
    prepare(&seals, CLIENT_SIDE, FIRST_IV, 1);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    wall = now(CLOCK_MONOTONIC);
    calls = 0;
    for (;;) {
        ssize_t got = recv(from, room + have, most, 0);
        size_t start = 0;
        calls++;
        if (got == 0)
            break;
        need(got > 0, "recv");
        have += (size_t)got;
        while (have - start >= LENGTH) {
            size_t size = LENGTH + read32(room + start) + TAG, payload;
            if (have - start < size)
                break;
            payload = unseal(&opens, room + start, size);
            carried += read32(room + start + LENGTH + 1 + 5);
            write32(room + start + LENGTH + 1 + 1, 7); /* the recipient channel is another one */
            need(seal(&seals, room + start, payload) == size, "the size");
            start += size;
        }
        send_all(to, room, start);
        memmove(room, room + start, have - start); /* less than a packet */
        have -= start;
    }
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = now(CLOCK_MONOTONIC) - wall;
    close(to);
    need(have == 0 && carried == bytes, "every byte");
    ended(first);
    ended(second);
    printf("{\"count\": %llu, \"cpu_seconds\": %.9f, \"seconds\": %.9f, \"calls\": %lu}\n", (unsigned long long)carried, cpu, wall, calls);
}

/* -- sessions ------------------------------------------------------------------------------------------------------------------------ */

/* Sizes in bytes of what each side says, as OpenSSH and this relay do. A write is all that the protocol lets a side send at once. */
enum {
    POINT = 32,
    SIGNATURE = 64,
    HASH = 32,
    KEM_PUBLIC = 1184,
    KEM_SECRET = 1088,
    HELLO = 21 + 1000,        /* identification string and KEXINIT */
    REPLY_REST = 100,         /* of KEX_ECDH_REPLY beside point, signature and secret: host key, lengths, padding; NEWKEYS */
    NEWKEYS = 16,
    EXTENSIONS = 300,         /* SSH_MSG_EXT_INFO, hostkeys-00 */
    LOGIN = 200,              /* SSH_MSG_USERAUTH_REQUEST beside the signature */
    SERVICE = 17,
    SUCCESS = 1,
    OPEN = 24,
    CONFIRMATION = 17,
    COMMAND = 80,             /* an environment variable, and exec */
    ANSWER = 5 + 9 + 25 + 5,  /* CHANNEL_SUCCESS, little data, exit-status, EOF in one: a host that exits at once */
    CLOSE = 5
};

struct agreement {
    unsigned char hash[HASH];
    unsigned char keys[2][KEY], ivs[2][IV];
};

static EVP_MD *sha256;

/* Exchange hash, and the two keys and IVs that AES-GCM needs (RFC 4253 section 7.2). */
static void derive(struct agreement *one, const unsigned char *said, size_t size, const unsigned char *secret, size_t secret_size) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    need(EVP_DigestInit_ex(context, sha256, NULL) && EVP_DigestUpdate(context, said, size) && EVP_DigestUpdate(context, secret, secret_size) &&
             EVP_DigestFinal_ex(context, one->hash, NULL),
         "hash");
    for (int letter = 0; letter < 4; letter++) {
        unsigned char out[HASH], name = (unsigned char)('A' + letter);
        need(EVP_DigestInit_ex(context, sha256, NULL) && EVP_DigestUpdate(context, secret, secret_size) &&
                 EVP_DigestUpdate(context, one->hash, HASH) && EVP_DigestUpdate(context, &name, 1) &&
                 EVP_DigestUpdate(context, one->hash, HASH) && EVP_DigestFinal_ex(context, out, NULL),
             "derive");
        if (letter < 2)
            memcpy(one->ivs[letter], out, IV);
        else
            memcpy(one->keys[letter - 2], out, KEY);
    }
    EVP_MD_CTX_free(context);
}

static EVP_PKEY *made(const char *type) {
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, type);
    need(key != NULL, type);
    return key;
}

static void public_of(EVP_PKEY *key, unsigned char *out, size_t size) {
    size_t got = size;
    need(EVP_PKEY_get_raw_public_key(key, out, &got) && got == size, "public key");
}

static void agree(EVP_PKEY *ours, const unsigned char theirs[POINT], unsigned char out[POINT]) {
    EVP_PKEY *point = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, theirs, POINT);
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(ours, NULL);
    size_t size = POINT;
    need(point && EVP_PKEY_derive_init(context) && EVP_PKEY_derive_set_peer(context, point) && EVP_PKEY_derive(context, out, &size), "X25519");
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(point);
}

static void sign(EVP_PKEY *key, const unsigned char *data, size_t size, unsigned char out[SIGNATURE]) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    size_t got = SIGNATURE;
    need(EVP_DigestSignInit(context, NULL, NULL, NULL, key) && EVP_DigestSign(context, out, &got, data, size), "sign");
    EVP_MD_CTX_free(context);
}

static void verify(EVP_PKEY *key, const unsigned char *data, size_t size, const unsigned char signature[SIGNATURE]) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    need(EVP_DigestVerifyInit(context, NULL, NULL, NULL, key) && EVP_DigestVerify(context, signature, SIGNATURE, data, size) == 1, "verify");
    EVP_MD_CTX_free(context);
}

#if OPENSSL_VERSION_NUMBER >= 0x30500000L
static EVP_PKEY *kem_of(const unsigned char *public) {
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key_ex(NULL, "ML-KEM-768", NULL, public, KEM_PUBLIC);
    need(key != NULL, "ML-KEM-768");
    return key;
}
static void encapsulate(const unsigned char *public, unsigned char secret[KEM_SECRET], unsigned char out[HASH]) {
    EVP_PKEY *key = kem_of(public);
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, NULL);
    size_t size = KEM_SECRET, shared = HASH;
    need(EVP_PKEY_encapsulate_init(context, NULL) && EVP_PKEY_encapsulate(context, secret, &size, out, &shared), "encapsulate");
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(key);
}
static void decapsulate(EVP_PKEY *key, const unsigned char secret[KEM_SECRET], unsigned char out[HASH]) {
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, NULL);
    size_t shared = HASH;
    need(EVP_PKEY_decapsulate_init(context, NULL) && EVP_PKEY_decapsulate(context, out, &shared, secret, KEM_SECRET), "decapsulate");
    EVP_PKEY_CTX_free(context);
}
#else
static void encapsulate(const unsigned char *public, unsigned char *secret, unsigned char *out) {
    (void)public, (void)secret, (void)out;
    fail("this OpenSSL has no ML-KEM-768");
}
static void decapsulate(EVP_PKEY *key, const unsigned char *secret, unsigned char *out) {
    (void)key, (void)secret, (void)out;
    fail("this OpenSSL has no ML-KEM-768");
}
#endif

/* One side's encrypted connection. */
struct end {
    int fd;
    struct direction opens, seals;
    unsigned char out[4096];
    size_t filled;
};

static void put(struct end *one, size_t payload) {
    memset(one->out + one->filled + LENGTH + 1, 0, payload);
    one->filled += seal(&one->seals, one->out + one->filled, payload);
}

static void flush(struct end *one) {
    send_all(one->fd, one->out, one->filled);
    one->filled = 0;
}

/* Receives packets with the given payloads, which the other side has sent in one write. */
static void take(struct end *one, size_t first, size_t second) {
    unsigned char in[4096];
    size_t sizes[2] = {packet_size(first), second ? packet_size(second) : 0};
    recv_all(one->fd, in, sizes[0] + sizes[1]);
    need(unseal(&one->opens, in, sizes[0]) == first, "first packet");
    if (second)
        need(unseal(&one->opens, in + sizes[0], sizes[1]) == second, "second packet");
}

static void keys(struct end *one, const struct agreement *agreed, int sends) {
    prepare(&one->seals, agreed->keys[sends], agreed->ivs[sends], 1);
    prepare(&one->opens, agreed->keys[1 - sends], agreed->ivs[1 - sends], 0);
    one->filled = 0;
}

static void client(const struct sockaddr_in *to, unsigned long count, int mlkem, EVP_PKEY *host, EVP_PKEY *user) {
    unsigned char *said = calloc(1, 8192), secret[POINT + HASH], word;
    struct end end = {0};
    EVP_PKEY *kem = NULL;
    size_t kem_public = mlkem ? KEM_PUBLIC : 0, kem_secret = mlkem ? KEM_SECRET : 0;
    if (mlkem) {
        kem = made("ML-KEM-768");
        public_of(kem, said + 2 * HELLO + POINT, KEM_PUBLIC);
    }
    while (count--) {
        unsigned char *ours = said + 2 * HELLO, *theirs = ours + POINT + kem_public, signature[SIGNATURE], signed_login[LOGIN + SIGNATURE] = {0};
        struct agreement agreed;
        EVP_PKEY *key = made("X25519");
        end.fd = connected(to);
        send_all(end.fd, said, HELLO);
        recv_all(end.fd, said + HELLO, HELLO);
        public_of(key, ours, POINT);
        send_all(end.fd, ours, POINT + kem_public);
        recv_all(end.fd, theirs, POINT + kem_secret + SIGNATURE + REPLY_REST + NEWKEYS);
        memcpy(signature, theirs + POINT + kem_secret, SIGNATURE);
        agree(key, theirs, secret);
        if (mlkem)
            decapsulate(kem, theirs + POINT, secret + POINT);
        derive(&agreed, said, (size_t)(theirs - said) + POINT + kem_secret, secret, mlkem ? sizeof secret : POINT);
        verify(host, agreed.hash, HASH, signature);
        keys(&end, &agreed, 0);
        recv_all(end.fd, end.out, packet_size(EXTENSIONS));
        need(unseal(&end.opens, end.out, packet_size(EXTENSIONS)) == EXTENSIONS, "extensions");
        /* NEWKEYS, the service request and the login with its signature, in one write */
        memset(end.out, 0, NEWKEYS);
        end.filled = NEWKEYS;
        put(&end, SERVICE);
        sign(user, agreed.hash, HASH, signed_login + LOGIN);
        memcpy(end.out + end.filled + LENGTH + 1, signed_login, sizeof signed_login);
        end.filled += seal(&end.seals, end.out + end.filled, sizeof signed_login);
        flush(&end);
        take(&end, SERVICE, SUCCESS);
        put(&end, OPEN);
        flush(&end);
        take(&end, CONFIRMATION, 0);
        put(&end, COMMAND);
        flush(&end);
        take(&end, ANSWER, CLOSE);
        put(&end, CLOSE);
        flush(&end);
        shutdown(end.fd, SHUT_WR);
        need(recv(end.fd, &word, 1, 0) == 0, "the end");
        close(end.fd);
        EVP_PKEY_free(key);
    }
}

/* A git host whose connection is warm: each session opens a channel on it. */
static void git_host(int listener, unsigned long count) {
    struct end end = {.fd = accepted(listener)};
    struct agreement warm = {0};
    keys(&end, &warm, 1);
    while (count--) {
        take(&end, OPEN, 0);
        put(&end, CONFIRMATION);
        flush(&end);
        take(&end, COMMAND, 0);
        put(&end, ANSWER);
        put(&end, CLOSE);
        flush(&end);
        take(&end, CLOSE, 0);
    }
    close(end.fd);
}

static void sessions(unsigned long count, int mlkem) {
    struct sockaddr_in front, back;
    int in = listening(&front), out = listening(&back);
    EVP_PKEY *host = made("ED25519"), *user = made("ED25519");
    struct end warm = {0}, end = {0};
    struct agreement before = {0};
    unsigned char *said = calloc(1, 8192), secret[POINT + HASH], word;
    size_t kem_public = mlkem ? KEM_PUBLIC : 0, kem_secret = mlkem ? KEM_SECRET : 0;
    double cpu, wall;
    pid_t first, second;
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (mlkem) {
        EVP_PKEY *kem = EVP_PKEY_Q_keygen(NULL, NULL, "ML-KEM-768");
        if (!kem) {
            fprintf(stderr, "floor: this OpenSSL has no ML-KEM-768: it came with 3.5\n");
            exit(3);
        }
        EVP_PKEY_free(kem);
    }
    if ((first = peer()) == 0) {
        git_host(out, count);
        _exit(0);
    }
    if ((second = peer()) == 0) {
        client(&front, count, mlkem, host, user);
        _exit(0);
    }
    warm.fd = connected(&back);
    keys(&warm, &before, 0);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    wall = now(CLOCK_MONOTONIC);
    calls = 0;
    for (unsigned long done = 0; done < count; done++) {
        unsigned char *theirs = said + 2 * HELLO, *ours = theirs + POINT + kem_public, newkeys[NEWKEYS], *login;
        unsigned char packets[4096];
        size_t service = packet_size(SERVICE), request = packet_size(LOGIN + SIGNATURE);
        struct agreement agreed;
        EVP_PKEY *key;
        end.fd = accepted(in);
        send_all(end.fd, said + HELLO, HELLO);
        recv_all(end.fd, said, HELLO);
        recv_all(end.fd, theirs, POINT + kem_public);
        key = made("X25519");
        public_of(key, ours, POINT);
        agree(key, theirs, secret);
        if (mlkem)
            encapsulate(theirs + POINT, ours + POINT, secret + POINT);
        derive(&agreed, said, (size_t)(ours - said) + POINT + kem_secret, secret, mlkem ? sizeof secret : POINT);
        /* KEX_ECDH_REPLY, NEWKEYS and the extensions, in one write */
        memset(end.out, 0, POINT + kem_secret + SIGNATURE + REPLY_REST + NEWKEYS);
        memcpy(end.out, ours, POINT + kem_secret);
        sign(host, agreed.hash, HASH, end.out + POINT + kem_secret);
        keys(&end, &agreed, 1);
        end.filled = POINT + kem_secret + SIGNATURE + REPLY_REST + NEWKEYS;
        put(&end, EXTENSIONS);
        flush(&end);
        recv_all(end.fd, packets, NEWKEYS + service + request);
        memcpy(newkeys, packets, NEWKEYS);
        need(unseal(&end.opens, packets + NEWKEYS, service) == SERVICE, "service");
        login = packets + NEWKEYS + service;
        need(unseal(&end.opens, login, request) == LOGIN + SIGNATURE, "login");
        verify(user, agreed.hash, HASH, login + LENGTH + 1 + LOGIN);
        put(&end, SERVICE);
        put(&end, SUCCESS);
        flush(&end);
        take(&end, OPEN, 0);
        put(&end, CONFIRMATION);
        flush(&end);
        take(&end, COMMAND, 0);
        put(&warm, OPEN);
        flush(&warm);
        take(&warm, CONFIRMATION, 0);
        put(&warm, COMMAND);
        flush(&warm);
        take(&warm, ANSWER, CLOSE);
        put(&warm, CLOSE);
        flush(&warm);
        put(&end, ANSWER);
        put(&end, CLOSE);
        flush(&end);
        take(&end, CLOSE, 0);
        need(recv(end.fd, &word, 1, 0) == 0, "the client's end");
        close(end.fd);
        calls += 4; /* accept, TCP_NODELAY, the last recv, close */
        EVP_PKEY_free(key);
    }
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = now(CLOCK_MONOTONIC) - wall;
    ended(first);
    ended(second);
    printf("{\"count\": %lu, \"cpu_seconds\": %.9f, \"seconds\": %.9f, \"calls\": %lu}\n", count, cpu, wall, calls);
}

static unsigned long long number(const char *text, unsigned long long most) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || end == text || !value || value > most) {
        fprintf(stderr, "floor: %s: must be a number from 1 to %llu\n", text, most);
        exit(2);
    }
    return value;
}

int main(int count, char **words) {
    alarm(MOST_SECONDS);
    if (count == 5 && !strcmp(words[1], "bulk"))
        bulk(number(words[2], 1ULL << 40), number(words[3], 1 << 18), number(words[4], ROOM / 2));
    else if (count >= 3 && count <= 4 && !strcmp(words[1], "sessions") && (count == 3 || !strcmp(words[3], "mlkem")))
        sessions(number(words[2], 1000000), count == 4);
    else {
        fprintf(stderr, "usage: floor bulk BYTES PACKET READ | floor sessions COUNT [mlkem]\n");
        return 2;
    }
    return 0;
}
