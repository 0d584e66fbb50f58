#include "check.h"

#include <arpa/inet.h>

#include "tcp.h"

/* As a connection between two addresses is judged while the machine's own stay, and when they change. */
static void leads_out(const char *from, const char *to, bool as_it_is, bool when_moved)
{
	uint8_t a[16], b[16];
	bool is_ipv6 = inet_pton(AF_INET6, from, a) == 1;
	CHECK_IN(inet_pton(is_ipv6 ? AF_INET6 : AF_INET, from, a) == 1 && inet_pton(is_ipv6 ? AF_INET6 : AF_INET, to, b) == 1, to);
	CHECK_IN(tcp_leads_out(is_ipv6, a, b, false) == as_it_is, to);
	CHECK_IN(tcp_leads_out(is_ipv6, a, b, true) == when_moved, to);
}

void test_tcp(void)
{
	leads_out("10.0.2.15", "192.0.2.1", true, true);
	leads_out("10.0.2.15", "10.0.2.15", false, true);
	leads_out("127.0.0.1", "127.0.0.1", false, false);
	leads_out("127.0.0.1", "127.9.8.7", false, false);
	leads_out("fd00::15", "fd00::2", true, true);
	leads_out("fd00::15", "fd00::15", false, true);
	leads_out("::1", "::1", false, false);
	leads_out("::ffff:10.0.2.15", "::ffff:192.0.2.1", true, true);
	leads_out("::ffff:127.0.0.1", "::ffff:127.0.0.1", false, false);
	leads_out("::ffff:10.0.2.15", "::ffff:10.0.2.15", false, true);
}
