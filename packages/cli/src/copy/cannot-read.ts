import { EXIT, Failure } from '../failure.ts'

/** As skopeo and podman name what lies on a disk. */
const TRANSPORT = /^(oci|oci-archive|docker-archive|dir):([^:]+)/

/** Why a path of the user's own cannot be sent, and what to give instead. */
export function cannotRead(path: string, cause: NodeJS.ErrnoException): Failure {
  if (cause.code !== 'ENOENT' && cause.code !== 'ENOTDIR') {
    const hint = cause.code === 'EACCES' ? 'Send it as a user who may read it, or as: sudo cat FILE | dormouse … -' : undefined
    return new Failure(`Cannot read ${path}: ${cause.message}`, { cause, ...(hint !== undefined && { hint }) })
  }
  return new Failure(`Cannot read ${path}: it is not there`, {
    exitCode: EXIT.notFound,
    code: 'path_not_found',
    cause,
    hint: hintFor(path),
  })
}

function hintFor(path: string): string {
  const [, transport, place] = TRANSPORT.exec(path) ?? []
  if (place === undefined) return `Paths are those of this machine, from ${process.cwd()} on; - takes standard input`
  if (transport === 'dir') return 'Make an OCI layout of it first: skopeo copy dir:DIR oci:LAYOUT:latest'
  return `Give the path alone, and the name of the image after it: dormouse image import ${place} NAME`
}
