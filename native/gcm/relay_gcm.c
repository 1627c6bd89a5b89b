/* Packets of the SSH transport with AES-GCM (RFC 4253 section 6, RFC 5647), many in one call: what relay/ssh/gcm.py does in Python.
 *
 * The cipher's work is OpenSSL's (EVP). A key schedule is made once a key; a packet's plaintext is never put together in memory of its
 * own: its head, its data and its padding go into the cipher one after another, and on the way back data is decrypted to where it is
 * wanted. Nothing that was decrypted leaves a call before its tag was compared.
 *
 * tests/ssh/test_gcm.py holds the two against each other, byte by byte.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

#define LENGTH 4
#define BLOCK 16
#define TAG 16
#define NONCE 12
#define PADDING_LEAST 4
#define DATA_HEAD 10 /* padding_length, message number, recipient channel, length of the data; or the bytes that a window opens by */
#define MSG_CHANNEL_WINDOW_ADJUST 93
#define MSG_CHANNEL_DATA 94
#define HEAD_MOST 16
#define PACKET_MOST (1 << 24)

#define NOISE (PADDING_LEAST + BLOCK - 1) /* what one packet's padding may take */
#define PAGE 4096

/* Random bytes for padding, none of them used twice, which OpenSSL is asked for once in some hundred packets. Under the interpreter's lock. */
static unsigned char page[PAGE];
static size_t used = PAGE;

/* AES-GCM by length of the key, looked up once: OpenSSL 3 would look through its providers for each connection. */
static EVP_CIPHER *aes_128, *aes_256;

typedef struct {
    PyObject_HEAD
    EVP_CIPHER_CTX *seal; /* made when it is first wanted: a connection's direction wants one of the two */
    EVP_CIPHER_CTX *open;
    unsigned char key[32];
    Py_ssize_t key_size;
} Aead;

static void put32(unsigned char *to, uint32_t value)
{
    to[0] = (unsigned char)(value >> 24);
    to[1] = (unsigned char)(value >> 16);
    to[2] = (unsigned char)(value >> 8);
    to[3] = (unsigned char)value;
}

static uint32_t get32(const unsigned char *from)
{
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

/* The invocation counter, RFC 5647 section 7.1: the last eight bytes, modulo 2**64. */
static void advance(unsigned char *nonce)
{
    for (int i = NONCE - 1; i >= 4 && ++nonce[i] == 0; i--)
        ;
}

static int padding_of(size_t body)
{
    int padding = (int)((BLOCK - body % BLOCK) % BLOCK);
    return padding < PADDING_LEAST ? padding + BLOCK : padding;
}

static const unsigned char *random_noise(void)
{
    if (used + NOISE > PAGE) {
        if (RAND_bytes(page, PAGE) != 1)
            return NULL;
        used = 0;
    }
    used += NOISE;
    return page + used - NOISE;
}

/* The caller's noise, or none for None. */
static int noise_of(PyObject *given, Py_buffer *noise)
{
    return given == Py_None ? 0 : PyObject_GetBuffer(given, noise, PyBUF_SIMPLE);
}

static PyObject *failed(void)
{
    PyErr_SetString(PyExc_RuntimeError, "OpenSSL refused an operation");
    return NULL;
}

/* The context in `place`, with the key in it; NULL: OpenSSL could not. */
static EVP_CIPHER_CTX *context(Aead *self, EVP_CIPHER_CTX **place, int encrypts)
{
    if (!*place) {
        EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
        if (!made || EVP_CipherInit_ex(made, self->key_size == 16 ? aes_128 : aes_256, NULL, self->key, NULL, encrypts) != 1) {
            EVP_CIPHER_CTX_free(made);
            return NULL;
        }
        *place = made;
    }
    return *place;
}

static PyObject *aead_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    const char *key;
    Py_ssize_t size;
    if (named && PyDict_GET_SIZE(named)) {
        PyErr_SetString(PyExc_TypeError, "Aead takes the key alone");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "y#", &key, &size))
        return NULL;
    if (size != 16 && size != 32) {
        PyErr_SetString(PyExc_ValueError, "a key of AES-GCM has 16 or 32 bytes");
        return NULL;
    }
    Aead *self = (Aead *)type->tp_alloc(type, 0);
    if (self) {
        memcpy(self->key, key, (size_t)size);
        self->key_size = size;
    }
    return (PyObject *)self;
}

static void aead_dealloc(Aead *self)
{
    EVP_CIPHER_CTX_free(self->seal); /* clears its key */
    EVP_CIPHER_CTX_free(self->open);
    OPENSSL_cleanse(self->key, sizeof self->key);
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Writes one packet to `out`: its length, then head (its first byte becomes padding_length), data and padding encrypted, then the tag. */
static int seal_one(EVP_CIPHER_CTX *cipher, const unsigned char *nonce, unsigned char *head, size_t head_size, const unsigned char *data,
                    size_t size, const unsigned char *noise, unsigned char *out)
{
    int done = 0;
    int padding = padding_of(head_size + size);
    head[0] = (unsigned char)padding;
    put32(out, (uint32_t)(head_size + size + (size_t)padding));
    unsigned char *to = out + LENGTH;
    if (EVP_EncryptInit_ex(cipher, NULL, NULL, NULL, nonce) != 1 || EVP_EncryptUpdate(cipher, NULL, &done, out, LENGTH) != 1 ||
        EVP_EncryptUpdate(cipher, to, &done, head, (int)head_size) != 1)
        return 0;
    to += head_size;
    if (size && EVP_EncryptUpdate(cipher, to, &done, data, (int)size) != 1)
        return 0;
    to += size;
    if (EVP_EncryptUpdate(cipher, to, &done, noise, padding) != 1)
        return 0;
    to += padding;
    return EVP_EncryptFinal_ex(cipher, to, &done) == 1 && EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, TAG, to) == 1;
}

static int is_nonce(Py_ssize_t size)
{
    if (size != NONCE)
        PyErr_SetString(PyExc_ValueError, "a nonce has 12 bytes");
    return size == NONCE;
}

PyDoc_STRVAR(packet_doc, "packet(nonce, payload, noise) -> bytes\n\nOne packet as it goes out; `noise` is 19 random bytes for its padding, None: of OpenSSL's.");

static PyObject *aead_packet(Aead *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer nonce = {0}, payload = {0}, noise = {0};
    PyObject *out = NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "packet takes nonce, payload and noise");
        return NULL;
    }
    if (PyObject_GetBuffer(args[0], &nonce, PyBUF_SIMPLE) || PyObject_GetBuffer(args[1], &payload, PyBUF_SIMPLE) ||
        noise_of(args[2], &noise) || !is_nonce(nonce.len))
        goto end;
    if (payload.len < 1 || payload.len > PACKET_MOST || (noise.buf && noise.len < NOISE)) {
        PyErr_SetString(PyExc_ValueError, "a payload has 1 byte to 16 MiB, and 19 bytes of noise");
        goto end;
    }
    unsigned char head[1];
    int padding = padding_of(1 + (size_t)payload.len);
    out = PyBytes_FromStringAndSize(NULL, LENGTH + 1 + payload.len + padding + TAG);
    const unsigned char *random = noise.buf ? noise.buf : random_noise();
    EVP_CIPHER_CTX *cipher = context(self, &self->seal, 1);
    if (out && !(random && cipher && seal_one(cipher, nonce.buf, head, 1, payload.buf, (size_t)payload.len, random,
                                    (unsigned char *)PyBytes_AS_STRING(out)))) {
        Py_CLEAR(out);
        failed();
    }
end:
    PyBuffer_Release(&nonce);
    PyBuffer_Release(&payload);
    PyBuffer_Release(&noise);
    return out;
}

PyDoc_STRVAR(data_doc, "data(nonce, head, data, most, noise) -> (bytes, count)\n\n"
                       "`data` as so many packets of channel data, at most `most` bytes in each. `head` is what they have in common: message number,\n"
                       "recipient channel and, for extended data, its type. `noise` is 19 random bytes for each packet, None: of OpenSSL's.");

static PyObject *aead_data(Aead *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer nonce = {0}, common = {0}, data = {0}, noise = {0};
    PyObject *out = NULL;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "data takes nonce, head, data, most and noise");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(args[3]);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(args[0], &nonce, PyBUF_SIMPLE) || PyObject_GetBuffer(args[1], &common, PyBUF_SIMPLE) ||
        PyObject_GetBuffer(args[2], &data, PyBUF_SIMPLE) || noise_of(args[4], &noise) || !is_nonce(nonce.len))
        goto end;
    if (most < 1 || most > PACKET_MOST || common.len < 1 || common.len > HEAD_MOST - 1 - LENGTH || data.len < 1) {
        PyErr_SetString(PyExc_ValueError, "data and a packet have a byte at least, a head has 11 at most");
        goto end;
    }
    size_t packets = ((size_t)data.len + (size_t)most - 1) / (size_t)most;
    if (noise.buf && (size_t)noise.len < packets * NOISE) {
        PyErr_SetString(PyExc_ValueError, "19 bytes of noise are needed for each packet");
        goto end;
    }
    size_t head_size = 1 + (size_t)common.len + LENGTH;
    size_t last = (size_t)data.len - (packets - 1) * (size_t)most;
    size_t whole = LENGTH + head_size + (size_t)most + (size_t)padding_of(head_size + (size_t)most) + TAG;
    size_t total = (packets - 1) * whole + LENGTH + head_size + last + (size_t)padding_of(head_size + last) + TAG;
    out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (!out)
        goto end;
    unsigned char head[HEAD_MOST], iv[NONCE];
    EVP_CIPHER_CTX *cipher = context(self, &self->seal, 1);
    memcpy(head + 1, common.buf, (size_t)common.len);
    memcpy(iv, nonce.buf, NONCE);
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(out);
    const unsigned char *from = data.buf;
    for (size_t i = 0; i < packets; i++) {
        size_t size = i + 1 < packets ? (size_t)most : last;
        const unsigned char *random = noise.buf ? (unsigned char *)noise.buf + i * NOISE : random_noise();
        put32(head + head_size - LENGTH, (uint32_t)size);
        if (!cipher || !random || !seal_one(cipher, iv, head, head_size, from, size, random, to)) {
            Py_CLEAR(out);
            failed();
            goto end;
        }
        advance(iv);
        from += size;
        to += whole;
    }
end:
    PyBuffer_Release(&nonce);
    PyBuffer_Release(&common);
    PyBuffer_Release(&data);
    PyBuffer_Release(&noise);
    if (!out)
        return NULL;
    return Py_BuildValue("(Nn)", out, (Py_ssize_t)packets);
}

/* Decrypts the `size` bytes from `from` on; 1 good, 0 refused. The tag is compared by `is_whole`. */
static int unseal(EVP_CIPHER_CTX *cipher, unsigned char *to, const unsigned char *from, size_t size)
{
    int done = 0;
    return !size || EVP_DecryptUpdate(cipher, to, &done, from, (int)size) == 1;
}

static int is_whole(EVP_CIPHER_CTX *cipher, const unsigned char *tag)
{
    unsigned char copy[TAG], none[BLOCK];
    int done = 0;
    memcpy(copy, tag, TAG); /* OpenSSL wants it writable */
    return EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, TAG, copy) == 1 && EVP_DecryptFinal_ex(cipher, none, &done) == 1;
}

static int begin(EVP_CIPHER_CTX *cipher, const unsigned char *nonce, const unsigned char *length)
{
    int done = 0;
    return EVP_DecryptInit_ex(cipher, NULL, NULL, NULL, nonce) == 1 && EVP_DecryptUpdate(cipher, NULL, &done, length, LENGTH) == 1;
}

/* The length of the packet at `from`, of which `left` bytes are there; 0: not all of it, or no length that a packet may have. */
static size_t packet_at(const unsigned char *from, size_t left, size_t most)
{
    if (left < LENGTH)
        return 0;
    size_t length = get32(from);
    if (length > most || length < BLOCK || left - LENGTH < length + TAG)
        return 0;
    return length;
}

PyDoc_STRVAR(open_doc, "open(nonce, data, start, most) -> (payload, end) or None\n\n"
                       "The payload of the packet at `start` and where it ends; None: it is not whole, longer than `most`, or wrong.");

static PyObject *aead_open(Aead *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer nonce = {0}, data = {0};
    PyObject *plain = NULL, *result = NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "open takes nonce, data, start and most");
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(args[2]), most = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(args[0], &nonce, PyBUF_SIMPLE) || PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) || !is_nonce(nonce.len))
        goto end;
    if (start < 0 || start > data.len || most < 0 || most > PACKET_MOST) {
        PyErr_SetString(PyExc_ValueError, "start lies in the data, most is 16 MiB at most");
        goto end;
    }
    const unsigned char *from = (const unsigned char *)data.buf + start;
    size_t length = packet_at(from, (size_t)(data.len - start), (size_t)most);
    EVP_CIPHER_CTX *cipher = context(self, &self->open, 0);
    if (!cipher) {
        failed();
        goto end;
    }
    result = Py_None;
    if (length) {
        plain = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (!plain) {
            result = NULL;
            goto end;
        }
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(plain);
        if (begin(cipher, nonce.buf, from) && unseal(cipher, to, from + LENGTH, length) && is_whole(cipher, from + LENGTH + length) &&
            to[0] >= PADDING_LEAST && (size_t)to[0] + 1 < length) {
            size_t payload = length - 1 - to[0];
            memmove(to, to + 1, payload);
            if (_PyBytes_Resize(&plain, (Py_ssize_t)payload)) {
                result = NULL;
                goto end;
            }
            result = Py_BuildValue("(On)", plain, start + (Py_ssize_t)(LENGTH + length + TAG));
        }
    }
end:
    Py_XDECREF(plain);
    PyBuffer_Release(&nonce);
    PyBuffer_Release(&data);
    if (result == Py_None)
        Py_INCREF(result);
    return result;
}

PyDoc_STRVAR(run_doc, "run(nonce, data, start, most, limit) -> (bytes or int, channel, packets, end) or None\n\n"
                      "What the packets from `start` on bring to one channel, as long as they are whole, right and of one kind: data, of which `limit`\n"
                      "bytes at most, or an opener window. None: the first is neither.");

static PyObject *aead_run(Aead *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer nonce = {0}, data = {0};
    PyObject *out = NULL, *result = NULL;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "run takes nonce, data, start, most and limit");
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(args[2]), most = PyLong_AsSsize_t(args[3]), limit = PyLong_AsSsize_t(args[4]);
    if (PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(args[0], &nonce, PyBUF_SIMPLE) || PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) || !is_nonce(nonce.len))
        goto end;
    if (start < 0 || start > data.len || most < 0 || most > PACKET_MOST || limit < 0) {
        PyErr_SetString(PyExc_ValueError, "start lies in the data, most is 16 MiB at most, a limit is not negative");
        goto end;
    }
    const unsigned char *from = (const unsigned char *)data.buf + start;
    size_t left = (size_t)(data.len - start), got = 0, packets = 0, length;
    unsigned long long window = 0;
    uint32_t channel = 0;
    unsigned char kind = 0, iv[NONCE], head[DATA_HEAD], padding[UCHAR_MAX];
    memcpy(iv, nonce.buf, NONCE);
    EVP_CIPHER_CTX *cipher = context(self, &self->open, 0);
    if (!cipher) {
        failed();
        goto end;
    }
    while ((length = packet_at(from, left, (size_t)most)) != 0) {
        /* nobody has compared its tag yet: what is not of this kind, for this channel, is left for others to judge */
        if (!begin(cipher, iv, from) || !unseal(cipher, head, from + LENGTH, DATA_HEAD))
            break;
        size_t size = head[1] == MSG_CHANNEL_DATA ? get32(head + 6) : 0;
        if ((head[1] != MSG_CHANNEL_DATA && head[1] != MSG_CHANNEL_WINDOW_ADJUST) || head[0] < PADDING_LEAST || size > length ||
            DATA_HEAD + size + head[0] != length || (packets && (head[1] != kind || get32(head + 2) != channel)) || size > (size_t)limit - got)
            break;
        unsigned char *to = padding;
        if (head[1] == MSG_CHANNEL_DATA) {
            if (!out && !(out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)left)))
                goto end;
            to = (unsigned char *)PyBytes_AS_STRING(out) + got;
        }
        if (!unseal(cipher, to, from + LENGTH + DATA_HEAD, size) || !unseal(cipher, padding, from + LENGTH + DATA_HEAD + size, head[0]) ||
            !is_whole(cipher, from + LENGTH + length))
            break;
        kind = head[1];
        channel = get32(head + 2);
        window += get32(head + 6);
        got += size;
        packets++;
        advance(iv);
        from += LENGTH + length + TAG;
        left -= LENGTH + length + TAG;
    }
    if (!packets) {
        result = Py_NewRef(Py_None);
        goto end;
    }
    if (kind == MSG_CHANNEL_WINDOW_ADJUST)
        result = Py_BuildValue("(KInn)", window, channel, (Py_ssize_t)packets, data.len - (Py_ssize_t)left);
    else if (!_PyBytes_Resize(&out, (Py_ssize_t)got))
        result = Py_BuildValue("(OInn)", out, channel, (Py_ssize_t)packets, data.len - (Py_ssize_t)left);
end:
    Py_XDECREF(out);
    PyBuffer_Release(&nonce);
    PyBuffer_Release(&data);
    return result;
}

PyDoc_STRVAR(advanced_doc, "advanced(nonce, packets) -> bytes\n\nThe nonce after so many packets.");

static PyObject *module_advanced(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "advanced takes a nonce and how many packets");
        return NULL;
    }
    unsigned long long packets = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred() || !is_nonce(PyBytes_GET_SIZE(args[0])))
        return NULL;
    PyObject *out = PyBytes_FromStringAndSize(PyBytes_AS_STRING(args[0]), NONCE);
    if (!out)
        return NULL;
    unsigned char *counter = (unsigned char *)PyBytes_AS_STRING(out) + 4;
    uint64_t value = ((uint64_t)get32(counter) << 32 | get32(counter + 4)) + packets;
    put32(counter, (uint32_t)(value >> 32));
    put32(counter + 4, (uint32_t)value);
    return out;
}

static PyMethodDef functions[] = {
    {"advanced", (PyCFunction)(void (*)(void))module_advanced, METH_FASTCALL, advanced_doc},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef methods[] = {
    {"packet", (PyCFunction)(void (*)(void))aead_packet, METH_FASTCALL, packet_doc},
    {"data", (PyCFunction)(void (*)(void))aead_data, METH_FASTCALL, data_doc},
    {"open", (PyCFunction)(void (*)(void))aead_open, METH_FASTCALL, open_doc},
    {"run", (PyCFunction)(void (*)(void))aead_run, METH_FASTCALL, run_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, aead_new},
    {Py_tp_dealloc, aead_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Aead(key)\n\nThe packets of one direction of an SSH transport with AES-GCM; the caller keeps the nonce."},
    {0, NULL},
};

static PyType_Spec spec = {.name = "relay_gcm.Aead", .basicsize = sizeof(Aead), .flags = Py_TPFLAGS_DEFAULT, .slots = slots};

static int module_exec(PyObject *module)
{
    aes_128 = aes_128 ? aes_128 : EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    aes_256 = aes_256 ? aes_256 : EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    if (!aes_128 || !aes_256) {
        PyErr_SetString(PyExc_ImportError, "OpenSSL has no AES-GCM");
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    int added = type ? PyModule_AddObjectRef(module, "Aead", type) : -1;
    Py_XDECREF(type);
    return added;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "relay_gcm", .m_doc = "Packets of the SSH transport with AES-GCM.", .m_methods = functions, .m_slots = module_slots};

PyMODINIT_FUNC PyInit_relay_gcm(void)
{
    return PyModuleDef_Init(&module);
}
