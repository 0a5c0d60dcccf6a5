/* AAPCS64: x19-x30, d8-d15 and fpcr survive calls.
 * Frame: x19..x30 (96), d8..d15 (64), fpcr (8), pad (8) = 176 bytes. */
	.text

	.globl um__switch
	.hidden um__switch
	.type um__switch, %function
	.p2align 4
um__switch:
	.cfi_startproc
	hint #34
	sub sp, sp, #176
	stp x19, x20, [sp, #0]
	stp x21, x22, [sp, #16]
	stp x23, x24, [sp, #32]
	stp x25, x26, [sp, #48]
	stp x27, x28, [sp, #64]
	stp x29, x30, [sp, #80]
	stp d8, d9, [sp, #96]
	stp d10, d11, [sp, #112]
	stp d12, d13, [sp, #128]
	stp d14, d15, [sp, #144]
	mrs x9, fpcr
	str x9, [sp, #160]
	mov x9, sp
	str x9, [x0]
	mov sp, x1
	ldr x9, [sp, #160]
	msr fpcr, x9
	ldp d14, d15, [sp, #144]
	ldp d12, d13, [sp, #128]
	ldp d10, d11, [sp, #112]
	ldp d8, d9, [sp, #96]
	ldp x29, x30, [sp, #80]
	ldp x27, x28, [sp, #64]
	ldp x25, x26, [sp, #48]
	ldp x23, x24, [sp, #32]
	ldp x21, x22, [sp, #16]
	ldp x19, x20, [sp, #0]
	add sp, sp, #176
	ret
	.cfi_endproc
	.size um__switch, .-um__switch

/* Where a prepared stack starts: entry in x19, argument in x20. */
	.globl um__switch_start
	.hidden um__switch_start
	.type um__switch_start, %function
	.p2align 4
um__switch_start:
	.cfi_startproc
	.cfi_undefined x30
	hint #34
	mov x0, x20
	mov x29, #0
	mov x30, #0
	blr x19
	brk #1
	.cfi_endproc
	.size um__switch_start, .-um__switch_start

	.globl um__switch_call
	.hidden um__switch_call
	.type um__switch_call, %function
	.p2align 4
um__switch_call:
	.cfi_startproc
	hint #34
	stp x29, x30, [sp, #-16]!
	.cfi_def_cfa_offset 16
	.cfi_offset x29, -16
	.cfi_offset x30, -8
	mov x29, sp
	.cfi_def_cfa_register x29
	mov sp, x0
	mov x0, x2
	blr x1
	mov sp, x29
	ldp x29, x30, [sp], #16
	.cfi_def_cfa sp, 0
	ret
	.cfi_endproc
	.size um__switch_call, .-um__switch_call

	.section .note.GNU-stack,"",%progbits
