import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { styleOf } from './style.ts'
import { type Column, renderFacts, renderTable } from './table.ts'

const style = styleOf({})
const columns: Column<{ name: string; size: string }>[] = [
  { title: 'NAME', value: ({ name }) => name, shrinksTo: 6 },
  { title: 'SIZE', value: ({ size }) => size, align: 'right' },
]

test('columns are aligned and nothing trails', () => {
  const rows = [
    { name: 'a', size: '1' },
    { name: 'longer', size: '1000' },
  ]
  assert.equal(renderTable(columns, rows, { width: undefined, style }), 'NAME     SIZE\na           1\nlonger   1000\n')
})

test('an empty list has its header', () => {
  assert.equal(renderTable(columns, [], { width: undefined, style }), 'NAME   SIZE\n')
})

test('a narrow terminal shortens what may be shortened, a pipe shortens nothing', () => {
  const rows = [{ name: 'a-name-that-goes-on', size: '1000' }]
  assert.equal(renderTable(columns, rows, { width: 15, style }).split('\n')[1], 'a-name-…   1000')
  assert.match(renderTable(columns, rows, { width: undefined, style }), /a-name-that-goes-on/)
})

test('no line is wider than the terminal while there is something to shorten', () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ name: fc.string({ maxLength: 60 }), size: fc.string({ maxLength: 5 }) })),
      fc.integer({ min: 40, max: 120 }),
      (rows, width) => {
        const widest = Math.max(...rows.map(({ size }) => size.length * 4), 4)
        for (const line of renderTable(columns, rows, { width, style }).split('\n'))
          assert.ok([...line].length <= Math.max(width, widest + 9), line)
      },
    ),
  )
})

test('text from elsewhere cannot steer the terminal or break the table', () => {
  const text = renderTable(columns, [{ name: '\u001b[2Jx\ny\u202e', size: '1' }], { width: undefined, style })
  assert.equal(text.split('\n').length, 3)
  assert.match(text, /\\x1b\[2Jx\\x0ay\\x202e/)
})

test('facts that are not known are left out', () => {
  assert.equal(
    renderFacts(
      [
        ['Path', '/a'],
        ['Target', undefined],
      ],
      style,
    ),
    'Path   /a\n',
  )
})
