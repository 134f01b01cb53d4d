/*
 * Start of the in-guest agent: find the two ports, start the threads.
 *
 *   agent [--control PATH] [--heartbeat PATH]
 *
 * Without options the ports are virtio-serial ports found by name.  With
 * a PATH (or fd:N, an inherited descriptor) the agent runs anywhere: that
 * is how it is tested without QEMU.  It then ends when the peer hangs up
 * and never powers anything off.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>

#include "agent.h"

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "control", required_argument, NULL, 'c' },
        { "heartbeat", required_argument, NULL, 'b' },
        { NULL, 0, NULL, 0 },
    };
    const char *control = NULL, *heartbeat = NULL;
    int option, control_fd, heartbeat_fd;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'c') {
            control = optarg;
        } else if (option == 'b') {
            heartbeat = optarg;
        } else {
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    /*
     * A fixed seed, set before there are threads to race for it: asking
     * the kernel for a random one makes a freshly booted guest wait a
     * second for entropy, and the only peer is the lab that started it.
     */
    json_object_seed(1);
    control_fd = port_open(control, CONTROL_PORT);
    heartbeat_fd = port_open(heartbeat, HEARTBEAT_PORT);
    if (control_fd < 0 || heartbeat_fd < 0) {
        perror("pageflip-agent: cannot open the ports");
        return 1;
    }
    reply_init(control_fd);
    heartbeat_start(heartbeat_fd);
    worker_start();
    command_loop(control_fd, control == NULL);
    return 0;
}
