/* libssh2's configuration for Linux with glibc 2.25 or musl 1.1.20, or later: what its CMake finds out there. */
#define HAVE_UNISTD_H
#define HAVE_INTTYPES_H
#define HAVE_SYS_SELECT_H
#define HAVE_SYS_UIO_H
#define HAVE_SYS_SOCKET_H
#define HAVE_SYS_IOCTL_H
#define HAVE_SYS_TIME_H
#define HAVE_SYS_UN_H
#define HAVE_GETTIMEOFDAY
#define HAVE_STRTOLL
#define HAVE_SNPRINTF
#define HAVE_EXPLICIT_BZERO
#define HAVE_POLL
#define HAVE_SELECT
#define HAVE_O_NONBLOCK

#ifdef LIBSSH2_LIBRARY
#define LIBSSH2_API __attribute__ ((__visibility__ ("default")))
#endif
