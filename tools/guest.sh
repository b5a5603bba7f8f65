# Makes guests for an emulator out of Debian's packages: sourced by the scripts that boot
# them, which have set -eu, out (a directory for what is made) and are in the project's.
#
#   KERNEL=package   another kernel's package, linux-image-cloud-amd64's by default
#   ACCEL=kvm        not to emulate, where the machine can

# guest_kernel sets release and vmlinuz, and has the modules in $out/$package/lib/modules.
guest_kernel() {
	# Of which apt knows the present version.
	package=${KERNEL:-$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')}
	if [ -z "$package" ]; then
		echo "apt knows no linux-image-cloud-amd64" >&2
		exit 1
	fi
	mkdir -p "$out"
	if [ ! -e "$out/$package/boot" ]; then
		(cd "$out" && apt-get download -q "$package" && dpkg -x "$package"_*.deb "$package" && rm "$package"_*.deb)
	fi
	release=$(ls "$out/$package/lib/modules")
	vmlinuz=$out/$package/boot/vmlinuz-$release
	depmod -b "$out/$package" "$release"
}

# guest_root TOOL... makes $root: busybox, the kernel's modules, and tools of this machine
# with the libraries that they are linked with.
guest_root() {
	root=$out/root
	rm -rf "$root"
	mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/etc" "$root/var" "$root/lib/modules"
	ln -s ../run "$root/var/run"
	cp "$(command -v busybox)" "$root/bin/busybox"
	for applet in $(busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
	done
	for tool; do
		at=$(PATH=$PATH:/usr/sbin:/sbin command -v "$tool")
		rm -f "$root/bin/$tool"
		cp -L "$at" "$root/bin/$tool"
		for library in $(ldd "$at" | grep -o '/[^ ]*'); do
			mkdir -p "$root$(dirname "$library")"
			cp -L "$library" "$root$library"
		done
	done
	printf '%s\n' 'root:x:0:0::/:/bin/sh' 'tcpdump:x:100:100::/:/bin/false' >"$root/etc/passwd"
	cp -r "$out/$package/lib/modules/$release" "$root/lib/modules/"
	cat >"$root/mounts" <<'MOUNTS'
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
MOUNTS
}

# guest_archive FILE makes the root a file to boot from.
guest_archive() {
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$1"
}

# guest_run ARCHIVE ARGUMENT... boots one in place of the (sub)shell, its console on standard
# output. It ends after $limit minutes; $guest is added to its command line. A busy machine's
# emulator is too slow for the kernel's check of its timer.
guest_run() {
	archive=$1
	shift
	exec timeout --foreground "${limit}m" qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi}" -cpu max -nographic -no-reboot \
		-kernel "$vmlinuz" -initrd "$archive" -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check ${guest:-}" "$@" </dev/null
}
