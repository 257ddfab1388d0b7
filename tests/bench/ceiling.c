// The ceiling: what one core can deliver when a push server is nothing but its system calls.
//
// GET /feed/cN is an event stream, POST /push/cN frames its body once and writes it to each subscriber of channel N with one
// write(), after it has answered. That is all: no rights, no store, no history, no batching, no buffer for who reads slowly (its connection is
// closed), and a request must come in one piece, as the benchmark sends it. So nothing that does more can be much faster with
// as many writes; what is faster has saved writes.
//
//     cc -O2 -o ceiling ceiling.c && ./ceiling
//
// listens on a free port of 127.0.0.1 and prints its number.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHANNELS_MAX = 1 << 16, FILES_MAX = 1 << 17, BODY_BYTES_MAX = 1 << 16, READY_MAX = 1024 };

struct channel {
  int *files;
  int count, room;
  unsigned long sequence;
};

static struct channel channels[CHANNELS_MAX];
// The channel that a connection follows, counted from 1; 0: it asks.
static int followed[FILES_MAX];
// Where the connection stands among its channel's.
static int place[FILES_MAX];

static const char STREAM[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\r\n: hi\n\n";
static const char STORED[] = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";

static void end(int file) {
  if (followed[file]) {
    struct channel *channel = &channels[followed[file] - 1];
    int last = channel->files[--channel->count];
    channel->files[place[file]] = last;
    place[last] = place[file];
    followed[file] = 0;
  }
  close(file);
}

static void follow(int file, int number) {
  struct channel *channel = &channels[number];
  if (channel->count == channel->room) {
    channel->room = channel->room ? 2 * channel->room : 1;
    channel->files = realloc(channel->files, channel->room * sizeof *channel->files);
    if (!channel->files) abort();
  }
  place[file] = channel->count;
  channel->files[channel->count++] = file;
  followed[file] = number + 1;
  if (write(file, STREAM, sizeof STREAM - 1) < 0) end(file);
}

static void push(int file, int number, const char *body, int bytes) {
  static char frame[BODY_BYTES_MAX + 64];
  struct channel *channel = &channels[number];
  int length = sprintf(frame, "id: %lu\ndata: ", ++channel->sequence);
  memcpy(frame + length, body, bytes);
  length += bytes;
  memcpy(frame + length, "\n\n", 2);
  length += 2;
  if (write(file, STORED, sizeof STORED - 1) < 0) end(file);
  for (int index = channel->count - 1; index >= 0; index--)
    if (write(channel->files[index], frame, length) != length) end(channel->files[index]);
}

static void request(int file, char *text, int bytes) {
  text[bytes] = 0;
  char *body = strstr(text, "\r\n\r\n");
  int number;
  if (body && sscanf(text, "GET /feed/c%d", &number) == 1 && number >= 0 && number < CHANNELS_MAX) {
    if (!followed[file]) follow(file, number);
    return;
  }
  char *length = strcasestr(text, "\r\nContent-Length: ");
  int rest = body ? bytes - (int)(body + 4 - text) : -1;
  if (rest >= 0 && length && atoi(length + 18) == rest && sscanf(text, "POST /push/c%d", &number) == 1 && number >= 0 &&
      number < CHANNELS_MAX)
    push(file, number, body + 4, rest);
  else
    end(file);
}

static void take(int poll, int listener) {
  for (int file; (file = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0;) {
    int one = 1;
    setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = file};
    if (file >= FILES_MAX || epoll_ctl(poll, EPOLL_CTL_ADD, file, &event)) close(file);
  }
}

int main(void) {
  signal(SIGPIPE, SIG_IGN);
  int poll = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  struct epoll_event events[READY_MAX] = {{.events = EPOLLIN, .data.fd = listener}};
  if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
      getsockname(listener, (struct sockaddr *)&address, &size) || epoll_ctl(poll, EPOLL_CTL_ADD, listener, events))
    return perror("ceiling"), 1;
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  static char text[BODY_BYTES_MAX + 1];
  for (;;) {
    int ready = epoll_wait(poll, events, READY_MAX, -1);
    for (int index = 0; index < ready; index++) {
      int file = events[index].data.fd;
      if (file == listener) {
        take(poll, listener);
        continue;
      }
      int bytes = recv(file, text, sizeof text - 1, 0);
      if (bytes > 0) request(file, text, bytes);
      else if (bytes == 0 || errno != EAGAIN) end(file);
    }
  }
}
