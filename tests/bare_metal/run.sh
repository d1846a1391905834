#!/bin/sh
# The kernels of all instruction sets for x86, AVX512-BF16 and AMX among them, on a CPU that has them: an emulated one.
# Bochs (3.0 or later) boots them without an operating system. Debian 13: apt install bochs bochs-term isolinux xorriso
#
#   tests/bare_metal/run.sh [folder of compiled objects]     BOCHS="bochs -q" names another command
set -eu
here=$(cd "$(dirname "$0")" && pwd)
objects=$(cd "${1:-$(dirname "$(find "$here/../../build" -name csrc_cpu_kernels_amx.cpp.o | head -n 1)")}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

gcc -c "$here/boot.S" -o "$work/boot.o"
g++ -std=c++17 -O2 -Wall -Wextra -fno-pic -mno-red-zone -fno-exceptions -fno-stack-protector -fno-builtin \
  -I"$here/../../csrc" -c "$here/main.cpp" -o "$work/main.o"
ld -static --no-warn-rwx-segments -T "$here/link.ld" -o "$work/kernels.elf" "$work/boot.o" "$work/main.o" \
  "$objects"/csrc_cpu_kernels_default.cpp.o "$objects"/csrc_cpu_kernels_avx*.cpp.o "$objects"/csrc_cpu_kernels_amx.cpp.o
mkdir "$work/disc"
objcopy -O binary "$work/kernels.elf" "$work/disc/kernels"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 \
  /usr/lib/syslinux/modules/bios/libcom32.c32 /usr/lib/syslinux/modules/bios/mboot.c32 "$work/disc"
printf 'DEFAULT kernels\nLABEL kernels\n KERNEL mboot.c32\n APPEND kernels\n' > "$work/disc/isolinux.cfg"
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
  -boot-info-table "$work/disc"

cat > "$work/bochsrc" <<END
cpu: model=sapphire_rapids
megs: 1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
display_library: rfb, options="timeout=0"
speaker: enabled=0
plugin_ctrl: unmapped=1, biosdev=1
port_e9_hack: enabled=1
panic: action=fatal
error: action=ignore
info: action=ignore
log: $work/log
END
${BOCHS:-bochs -q} -f "$work/bochsrc" < /dev/null | tee "$work/output" | grep -aE 'FAILED|failures|passed amx' || true
grep -aq '^0 failures' "$work/output"
