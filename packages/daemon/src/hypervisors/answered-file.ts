/** Files that a VMM opens itself by names that its shim answers (shim/answer.h): it needs no right to them, and no way there. */

/** `ro`: it is only read, however it is opened. `blank`: an empty file of this VMM's own. */
export type AnsweredFile = { readonly name: string } & ({ readonly kind: 'ro' | 'rw'; readonly file: string } | { readonly kind: 'blank' })

/** What the VMM opens. No file can be there. */
export const answeredPath = (name: string): string => `/proc/dormouse/${name}`

/** As the shim is told of it. */
export const answerWord = (answered: AnsweredFile): string =>
  `${answered.name}=${answered.kind}:${answered.kind === 'blank' ? '' : answered.file}`
