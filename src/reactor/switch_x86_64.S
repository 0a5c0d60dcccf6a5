/* System V x86-64: rbx rbp r12-r15, mxcsr and the x87 control word survive calls.
 * Frame at the saved stack pointer: mxcsr+x87 (8) r15 r14 r13 r12 rbx rbp rip. */
	.text

	.globl um__switch
	.hidden um__switch
	.type um__switch, @function
	.p2align 4
um__switch:
	.cfi_startproc
	endbr64
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	subq $8, %rsp
	stmxcsr (%rsp)
	fnstcw 4(%rsp)
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	ldmxcsr (%rsp)
	fldcw 4(%rsp)
	addq $8, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
	.cfi_endproc
	.size um__switch, .-um__switch

/* Where a prepared stack starts: entry in r12, argument in r13. The return
 * address is marked undefined so that backtraces end here. */
	.globl um__switch_start
	.hidden um__switch_start
	.type um__switch_start, @function
	.p2align 4
um__switch_start:
	.cfi_startproc
	.cfi_undefined rip
	endbr64
	movq %r13, %rdi
	xorl %ebp, %ebp
	callq *%r12
	ud2
	.cfi_endproc
	.size um__switch_start, .-um__switch_start

	.globl um__switch_call
	.hidden um__switch_call
	.type um__switch_call, @function
	.p2align 4
um__switch_call:
	.cfi_startproc
	endbr64
	pushq %rbp
	.cfi_def_cfa_offset 16
	.cfi_offset rbp, -16
	movq %rsp, %rbp
	.cfi_def_cfa_register rbp
	movq %rdi, %rsp
	movq %rdx, %rdi
	callq *%rsi
	movq %rbp, %rsp
	popq %rbp
	.cfi_def_cfa rsp, 8
	ret
	.cfi_endproc
	.size um__switch_call, .-um__switch_call

	.section .note.GNU-stack,"",@progbits
