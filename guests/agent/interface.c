/*
 * The guest's Ethernet interface: found and given its address, so that a
 * guest needs no program of its own for that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

#define INTERFACES_DIR "/sys/class/net"
/* Answers that go out in one go, after a stall */
#define QUEUED_PACKETS 10000

static bool is_ethernet(const char *name)
{
    char path[300];
    FILE *file;
    int type = 0;

    snprintf(path, sizeof(path), INTERFACES_DIR "/%s/type", name);
    file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%d", &type) != 1) {
            type = 0;
        }
        fclose(file);
    }
    return type == ARPHRD_ETHER;
}

static bool find_interface(char name[IFNAMSIZ])
{
    DIR *dir = opendir(INTERFACES_DIR);
    struct dirent *entry;
    bool found = false;

    while (dir && !found && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.' && strlen(entry->d_name) < IFNAMSIZ &&
            is_ethernet(entry->d_name)) {
            strcpy(name, entry->d_name);
            found = true;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return found;
}

const char *interface_configure(struct in_addr address, unsigned prefix)
{
    struct ifreq request = { 0 };
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const char *failed = NULL;

    if (fd < 0) {
        return "socket";
    }
    if (!find_interface(request.ifr_name)) {
        failed = "there is no Ethernet interface";
        errno = ENODEV;
    } else {
        in->sin_family = AF_INET;
        in->sin_addr = address;
        if (ioctl(fd, SIOCSIFADDR, &request)) {
            failed = "SIOCSIFADDR";
        }
        in->sin_addr.s_addr = htonl(prefix ? ~0U << (32 - prefix) : 0);
        if (!failed && ioctl(fd, SIOCSIFNETMASK, &request)) {
            failed = "SIOCSIFNETMASK";
        }
        request.ifr_qlen = QUEUED_PACKETS;
        if (!failed && ioctl(fd, SIOCSIFTXQLEN, &request)) {
            failed = "SIOCSIFTXQLEN";
        }
        request.ifr_flags = IFF_UP | IFF_RUNNING;
        if (!failed && ioctl(fd, SIOCSIFFLAGS, &request)) {
            failed = "SIOCSIFFLAGS";
        }
    }
    close(fd);
    return failed;
}
