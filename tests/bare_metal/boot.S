// From the boot loader to main(): 64-bit mode, the first 2 GB of memory where they are, all vector and tile state switched on.
  .section .boot, "ax"
  .code32
  .globl start
header:  // Multiboot 1: a flat image, loaded at the address it was linked for
  .set FLAGS, 0x00010003
  .long 0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS)
  .long header, header, image_end, memory_end, start

start:
  cli
  movl $directories + 3, page_map
  movl $pages + 3, directories
  movl $pages + 4096 + 3, directories + 8
  movl $pages, %edi
  movl $0x83, %eax  // present, writable, 2 MB
  movl $1024, %ecx
map:
  movl %eax, (%edi)
  addl $0x200000, %eax
  addl $8, %edi
  loop map

  movl $page_map, %eax
  movl %eax, %cr3
  movl %cr4, %eax
  orl $(1 << 5 | 1 << 9 | 1 << 10 | 1 << 18), %eax  // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
  movl %eax, %cr4
  movl $0xC0000080, %ecx  // EFER
  rdmsr
  orl $(1 << 8), %eax  // long mode
  wrmsr
  movl %cr0, %eax
  andl $~(1 << 2 | 1 << 3), %eax  // no emulation, no task switched
  orl $(1 << 31 | 1 << 5 | 1 << 1), %eax
  movl %eax, %cr0
  lgdt table
  ljmp $8, $start64

  .code64
start64:
  movl $16, %eax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  xorl %ecx, %ecx
  xorl %edx, %edx
  movl $0x602e7, %eax  // x87, SSE, AVX, AVX-512, protection keys, tiles
  xsetbv
  movl $0xC0000100, %ecx  // the FS base: thread-local variables lie below it, and it points to itself
  movl $thread_pointer, %eax
  wrmsr
  movq $thread_pointer, thread_pointer
  movl $stack_end, %esp
  call main
stop:
  hlt
  jmp stop

  .align 8
descriptors:
  .quad 0, 0x00209A0000000000, 0x0000920000000000  // none, code, data
table:
  .word table - descriptors - 1
  .long descriptors

  .section .bss
  .align 4096
page_map:
  .skip 4096
directories:
  .skip 4096
pages:
  .skip 2 * 4096
  .skip 65536
thread_pointer:
  .skip 64
  .align 64
  .skip 1 << 20
stack_end:
  .section .note.GNU-stack, "", @progbits
