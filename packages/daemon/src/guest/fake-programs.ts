/** With what a made-up program ends at once; undefined when it is none of those. */
export function codeOf(program: string, argv: readonly string[]): number | undefined {
  if (program === 'true' || program === 'echo') return 0
  if (program === 'false') return 1
  return program === 'exit' ? Number(argv[1] ?? 0) & 255 : undefined
}

export const wordsFor = (code: number): string => (code === 0 ? 'exited' : `exited with code ${code}`)
