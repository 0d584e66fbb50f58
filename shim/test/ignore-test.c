/* Which connections do not count: the words, and whom they mean. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "../ignore.h"

static int failures;

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
            failures++; \
        } \
    } while (0)

static struct ignore ignore;

static int parse(const char *words) {
    static char copy[IGNORE_SIZE];
    snprintf(copy, sizeof copy, "%s", words);
    return parse_ignore(&ignore, copy);
}

static int is_out(const char *from, uint16_t port) {
    uint8_t address[16] = {0};
    int family = strchr(from, ':') == NULL ? AF_INET : AF_INET6;
    CHECK(inet_pton(family, from, address) == 1);
    return is_ignored(&ignore, family, address, port);
}

int main(void) {
    static const char *const nonsense[] = {"x", "-1", "65536", "1.2.3.4", "1.2.3.4/", "1.2.3.4/33", "1.2.3/8", "::/129", "::/-1", "80,81", "/8", "+80", "1.2.3.4/8x"};
    static char many[IGNORE_SIZE];
    CHECK(parse("") == 0 && !is_out("192.0.2.1", 80) && !is_out("::1", 80));
    CHECK(parse(" 22  65535 ") == 0 && is_out("192.0.2.1", 22) && is_out("::1", 65535) && !is_out("::1", 23));
    CHECK(parse("10.64.0.0/10") == 0 && is_out("10.127.255.255", 1) && !is_out("10.128.0.0", 1) && !is_out("10.63.255.255", 1) && !is_out("a40::", 1));
    CHECK(parse("192.0.2.7/32") == 0 && is_out("192.0.2.7", 1) && !is_out("192.0.2.6", 1));
    CHECK(parse("192.0.2.77/24") == 0 && is_out("192.0.2.1", 1));
    CHECK(parse("0.0.0.0/0") == 0 && is_out("192.0.2.6", 1) && !is_out("::", 1));
    CHECK(parse("2001:db8::/33 fd00::1/128") == 0 && is_out("2001:db8:7fff::1", 1) && !is_out("2001:db8:8000::1", 1) && is_out("fd00::1", 1));
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        if (parse(nonsense[i]) == 0) printf("%s\n", nonsense[i]);
        CHECK(parse(nonsense[i]) < 0);
    }
    for (int i = 0; i < MAX_IGNORED; i++) strcat(many, "7 ");
    CHECK(parse(many) == 0 && is_out("::", 7));
    strcat(many, "8");
    CHECK(parse(many) < 0);
    return failures != 0;
}
