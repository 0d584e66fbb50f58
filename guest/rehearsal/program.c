/*
 * What the image of a rehearsal runs, in place of an image's program: it does once what programs begin with, so that the kernel's part
 * of it has run. As a workload it then waits to be told to end.
 *
 *   rehearsal          does it and ends
 *   rehearsal wait     does it and waits
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t is_over;

static void end(int number)
{
	(void)number;
	is_over = 1;
}

/* A file of the image that is changed is copied up, one that is new is made on the disk. Another of us may be at it beside. */
static void use_files(void)
{
	char text[256], dir[64], file[80], other[80];
	struct stat facts;
	snprintf(dir, sizeof dir, "/tmp/rehearsal-%d", getpid());
	snprintf(file, sizeof file, "%s/file", dir);
	snprintf(other, sizeof other, "%s/other", dir);
	int fd = open("/etc/passwd", O_RDWR | O_APPEND);
	(void)!read(fd, text, sizeof text);
	(void)!write(fd, "#\n", 2);
	close(fd);
	mkdir(dir, 0700);
	fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600);
	(void)!write(fd, text, sizeof text);
	fsync(fd);
	void *map = mmap(NULL, sizeof text, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (map != MAP_FAILED)
		memset(map, 1, sizeof text);
	stat("/etc/nothing", &facts);
	rename(file, other);
	unlink(other);
	rmdir(dir);
	close(fd);
}

static void use_sockets(void)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	(void)!bind(tcp, (struct sockaddr *)&any, sizeof any);
	(void)!listen(tcp, 1);
	(void)!bind(udp, (struct sockaddr *)&any, sizeof any);
	close(tcp);
	close(udp);
}

/* As a shell does for `$(command)`: by fork, then by exec, with what was said on a pipe. */
static void use_processes(void)
{
	char *const argv[] = { "/bin/rehearsal", "nothing", NULL };
	char *const env[] = { NULL };
	char text[64];
	int ends[2];
	if (pipe(ends) < 0)
		return;
	pid_t child = fork();
	if (child == 0) {
		dup2(ends[1], 1);
		dprintf(1, "said\n");
		_exit(0);
	}
	close(ends[1]);
	while (read(ends[0], text, sizeof text) > 0)
		;
	close(ends[0]);
	waitpid(child, NULL, 0);
	child = fork();
	if (child == 0) {
		execve(argv[0], argv, env);
		_exit(127);
	}
	waitpid(child, NULL, 0);
	if (posix_spawn(&child, argv[0], NULL, NULL, argv, env) == 0)
		waitpid(child, NULL, 0);
}

static void use_the_rest(void)
{
	struct utsname name;
	struct timespec soon = { .tv_nsec = 1000000 };
	uname(&name);
	char *memory = malloc(1 << 20);
	if (memory)
		memset(memory, 1, 1 << 20);
	free(memory);
	nanosleep(&soon, NULL);
	printf("%s\n", name.nodename);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "nothing") == 0)
		return 0;
	sigaction(SIGTERM, &(struct sigaction){ .sa_handler = end }, NULL);
	use_files();
	use_sockets();
	use_processes();
	use_the_rest();
	while (argc > 1 && !is_over) {
		struct timespec second = { .tv_sec = 1 };
		nanosleep(&second, NULL);
	}
	return 0;
}
