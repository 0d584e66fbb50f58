#pragma once

/*
 * For a VMM that opens /dev/net/tun itself and knows its TAP by a name alone, in a network namespace with nothing in it: what it opens
 * there is the TAP that the shim has.
 */

/* In the child, last of all before its program: hands the descriptor by which it is answered over `to`. -1 with errno when it cannot be. */
int ask_for_tun(int to);
/* The other end of that; -1 when nothing came. */
int take_tun_asker(int from);
/* Answers one question. -1: no one is left to ask. */
int answer_tun(int asker, int tap);

/* Nothing comes through the TAP any more, and is lost, until it is opened again. Repeat is harmless. */
int shut_tap(int tap);
int open_tap_again(int tap);
