"""What a program needs around it to run on an emulated Cortex-M board: QEMU's ``mps2-an386``, output by semihosting."""

FLAGS = ("-mcpu=cortex-m4", "-mthumb")

LINKER = """ENTRY(reset)
MEMORY
{
    FLASH (rx)  : ORIGIN = 0x00000000, LENGTH = 4M
    RAM   (rwx) : ORIGIN = 0x20000000, LENGTH = 4M
}
stack_top = ORIGIN(RAM) + LENGTH(RAM);
SECTIONS
{
    .text   : { KEEP(*(.vectors)) *(.text*) *(.rodata*) *(.init*) *(.fini*) } > FLASH
    .ARM    : { *(.ARM.exidx*) *(.ARM.extab*) } > FLASH
    .data   : { data_start = .; *(.data*) . = ALIGN(4); data_end = .; } > RAM AT > FLASH
    data_load = LOADADDR(.data);
    .bss    : { bss_start = .; *(.bss*) *(COMMON) . = ALIGN(4); bss_end = .; } > RAM
    end = .;
}
"""

STARTUP = """#include <stdint.h>
#include <stdlib.h>

extern uint32_t data_start, data_end, data_load, bss_start, bss_end, stack_top;
extern void initialise_monitor_handles(void);
extern int main(void);

void reset(void)
{
    uint32_t *from = &data_load;
    for (uint32_t *to = &data_start; to < &data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = &bss_start; to < &bss_end;) {
        *to++ = 0;
    }
    initialise_monitor_handles();
    exit(main());
}

static void fault(void)
{
    exit(99);
}

/* Newlib calls these; there are no constructors. */
void _init(void) {}
void _fini(void) {}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};
"""

EMULATOR = (
    "qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting-config", "enable=on,target=native", "-kernel",
)  # fmt: skip
