import assert from 'node:assert/strict'
import { test } from 'node:test'
import { breaksOf, circlesOf, importsOf } from './import-rings.ts'

const daemon = (path: string): string => `packages/daemon/src/${path}`
const breaks = (file: string, source: string): string[] => breaksOf(importsOf(file, source))

test('imports that point inwards are fine', () => {
  assert.deepEqual(
    breaks(daemon('http/server.ts'), "import { Instances } from '../instances/instances.ts'\nimport { x } from '../lib/step.ts'"),
    [],
  )
})

test('an import that points outwards is named, also when it is only for types', () => {
  assert.match(breaks(daemon('lib/step.ts'), "import type { Paths } from '../paths.ts'").join(), /paths lies outside lib/)
})

test('a room in the same ring is entered by its head file only', () => {
  assert.deepEqual(breaks(daemon('images/pull.ts'), "import { Events } from '../events/events.ts'"), [])
  assert.match(breaks(daemon('images/pull.ts'), "import { Row } from '../events/row.ts'").join(), /only the head file/)
})

test('a room that the rings do not know is named', () => {
  assert.match(breaks(daemon('sheds/shed.ts'), "import { x } from '../lib/step.ts'").join(), /knows no room sheds/)
})

test('the api package imports nothing but TypeBox', () => {
  assert.deepEqual(breaks('packages/api/src/units.ts', "import { Type } from 'typebox'\nimport { Value } from 'typebox/value'"), [])
  assert.match(breaks('packages/api/src/units.ts', "import { readFile } from 'node:fs'").join(), /api may import only typebox/)
})

test('the CLI knows the api package and not the daemon', () => {
  assert.deepEqual(breaks('packages/cli/src/main.ts', "import { AppError } from '@dormouse/api/errors.ts'"), [])
  assert.match(breaks('packages/cli/src/main.ts', "import { x } from '../../daemon/src/paths.ts'").join(), /cli may import only/)
})

test('an import spread over lines, a bare one, a re-export and a dynamic one are all seen', () => {
  const source = "import {\n  a,\n  b,\n} from './a.ts'\nimport './b.ts'\nexport { c } from './c.ts'\nconst d = await import('./d.ts')\n"
  assert.deepEqual(
    importsOf(daemon('x/x.ts'), source).map(({ to }) => to),
    ['a', 'b', 'c', 'd'].map((name) => daemon(`x/${name}.ts`)),
  )
})

test('a circle is told as the way around it, and types do not close one', () => {
  const imports = (kind: string) => [
    ...importsOf(daemon('x/a.ts'), "import { b } from './b.ts'"),
    ...importsOf(daemon('x/b.ts'), `import ${kind}{ a } from './a.ts'`),
  ]
  assert.deepEqual(circlesOf(imports('type ')), [])
  assert.match(circlesOf(imports('')).join(), /a\.ts → .*b\.ts → .*a\.ts/)
})
