"""What tests of the app share: waiting for the answer to a question that was asked."""
import http.client
import json


def wait_for_answer(port, session):
    "The HTML that the app answers in this session, once it is done."
    link = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    link.request('GET', f'/gradio_api/queue/data?session_hash={session}')
    try:
        for line in link.getresponse():
            message = json.loads(line[5:]) if line.startswith(b'data:') else {}
            if message.get('msg') == 'process_completed': return message['output']['data'][0]
    finally: link.close()
